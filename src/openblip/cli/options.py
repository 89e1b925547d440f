"""The options that commands share: one grammar, so that a flag means the same thing everywhere.

A command names the ones it takes in its signature, with the default beside it::

    def convert(source: str, model: Model = DEFAULT_MODEL, device: Device = "auto", ...) -> None:
        prepare(threads=threads, offline=offline)

``--out`` is a place, ``--to`` a format, ``--draw`` pictures, ``--report`` an HTML page, ``-n`` a number of results per
input. Commands over pictures get theirs from :mod:`openblip.cli.jobs`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.engine import create

DEFAULT_MODEL = "pocket"


def _count_or_auto(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither 'auto' nor a number from 1 up")
    return int(text)


def _html_file(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"{path} does not end in .html")
    return path


# What every command that runs a model takes.
Model: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A bundle (pocket, base, large), a name that `openblip models` lists, a hub id, a folder, a bundle.json "
        "or a .pth file.",
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Where it runs: auto, cpu, cuda, cuda:1, mps.")
]
Engine: TypeAlias = Annotated[
    str, typer.Option("--engine", metavar="ENGINE", help="What runs it: auto, torch, compiled, openvino.")
]
Precision: TypeAlias = Annotated[
    str, typer.Option("--precision", metavar="PRECISION", help="Precision of the arithmetic: fp32, bf16, fp16, int8.")
]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="auto|N",
        parser=_count_or_auto,
        show_default="auto",
        help="Pictures computed together; the results do not depend on it.",
    ),
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=0, show_default="auto", help="Threads that open pictures ahead."),
]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, show_default="all cores", help="CPU threads of the arithmetic."),
]
Offline: TypeAlias = Annotated[
    bool, typer.Option("--offline", help="Use what is already on this machine; never touch the network.")
]

# What goes in and what comes out.
Number: TypeAlias = Annotated[int, typer.Option("--num", "-n", metavar="N", min=1, help="Results per picture.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="For machines: one JSON object per line.")]
Out: TypeAlias = Annotated[
    Path | None, typer.Option("--out", metavar="PATH", show_default="the terminal", help="Where the results go.")
]
Draw: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--draw",
        metavar="PATH",
        show_default="none",
        help="Also draw the results: a .png file, or a folder of them for several pictures.",
    ),
]
To: TypeAlias = Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format that is written.")]
Report: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE.html", callback=_html_file, show_default="none", help="Also write a page to look at."
    ),
]


def prepare(*, threads: int | None = None, offline: bool = False) -> None:
    """Apply the two options that concern the whole process, before anything heavy is imported."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub at import, by our own downloads at each call
    if threads is not None:
        import torch  # deferred: help stays fast

        torch.set_num_threads(threads)


def load(
    model: str,
    device: str,
    engine: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    threads: int | None,
    offline: bool,
) -> Blip:
    """The model that a command's shared options name, ready to use."""
    prepare(threads=threads, offline=offline)
    from openblip import blip  # deferred: help stays fast

    return blip.load(
        model,
        device=device,
        engine=cast("create.EngineName", engine),
        precision=cast("create.Precision", precision),
        batch_size=batch_size,
        workers=workers,
        offline=offline or None,
    )
