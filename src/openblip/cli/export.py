"""`openblip export`: write a model as graphs that run without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from openblip.cli.command import OUTPUT, argument, command, option
from openblip.cli.options import PATH, offline_option, prepare, threads_option
from openblip.tasks import TASKS, TaskName

RUNTIMES = ("onnx", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
EXPORTED_TASKS = tuple(name for name, task in TASKS.items() if task.pipeline is not None)


@command(example="openblip export pocket --to onnx --task caption --precision fp16 --out captioner")
@argument("source", metavar="SRC", help="Folder, .pth file, hub id, published name or bundle to export.")
@option("--to", panel=OUTPUT, metavar="RUNTIME", default="onnx", help=f"Runtime to export for: {', '.join(RUNTIMES)}.")
@option(
    "--task",
    "tasks",
    panel=OUTPUT,
    multiple=True,
    metavar="TASK",
    show_default="all tasks of SRC",
    help=f"Task to export: {', '.join(EXPORTED_TASKS)}. Repeat the option for several tasks in one folder.",
)
@option(
    "--precision",
    panel=OUTPUT,
    metavar="PRECISION",
    default="fp32",
    help="Precision of the stored weights: fp32, fp16 (computes in fp32) or int8.",
)
@option("--out", panel=OUTPUT, type=PATH, required=True, metavar="DIR", help="Folder to write.")
@option("--overwrite", panel=OUTPUT, is_flag=True, help="Replace DIR if it is an earlier export.")
@threads_option
@offline_option
def export(
    source: str,
    to: str,
    tasks: tuple[str, ...],
    precision: str,
    out: Path,
    overwrite: bool,
    threads: int | None,
    offline: bool,
) -> None:
    """Export a model to ONNX or OpenVINO.

    The export is compared with PyTorch at the end. openblip-portable runs it without PyTorch.
    """
    prepare(offline=offline, threads=threads)

    from openblip.export.run import RuntimeName, StoredPrecision, export_model

    report = export_model(
        source,
        out,
        to=cast("RuntimeName", to),
        tasks=cast("tuple[TaskName, ...]", tasks),
        precision=cast("StoredPrecision", precision),
        overwrite=overwrite,
    )
    click.echo(report.to_text())
    size = sum(path.stat().st_size for path in out.iterdir())
    click.echo(f"{out}: {size / 1e6:.1f} MB; run it with openblip-portable")
