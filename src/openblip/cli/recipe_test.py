"""``openblip test``: ``openblip eval run`` under the name and with the flags of mmpretrain's ``tools/test.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from openblip.cli import options as o
from openblip.cli.command import argument, command, option
from openblip.cli.console import finish, print_table, report_bad

# mmpretrain's configuration names, and our recipes: the benchmark each is evaluated on, and by whose settings.
CONFIGS = {
    "blip-base_8xb32_caption": ("coco-caption", "mmpretrain"),
    "blip-base_8xb32_nocaps": ("nocaps", "mmpretrain"),
    "blip-base_8xb32_caption_flickr30k": ("flickr30k-caption", "mmpretrain"),
    "blip-base_8xb32_vqa": ("vqa-v2", "mmpretrain"),
    "blip-base_8xb32_okvqa": ("okvqa", "mmpretrain"),
    "blip-base_8xb32_ocrvqa": ("ocr-vqa", "mmpretrain"),
    "blip-base_8xb32_retrieval": ("coco-retrieval", "mmpretrain"),
    "blip-base_8xb32_retrieval_flickr30k": ("flickr30k-retrieval", "mmpretrain"),
    "blip-base_8xb32_nlvr": ("nlvr2", "mmpretrain"),
    "blip-base_8xb16_refcoco": ("refcoco-testa", "mmpretrain"),
    "caption_coco_base": ("coco-caption", "paper"),
    "caption_coco_large": ("coco-caption", "paper"),
    "vqa_v2_base": ("vqa-v2", "paper"),
    "vqa_okvqa_base": ("okvqa", "lavis"),
    "vqa_aokvqa_base": ("aokvqa", "lavis"),
    "retrieval_coco_base": ("coco-retrieval", "paper"),
    "retrieval_coco_large": ("coco-retrieval", "paper"),
    "retrieval_flickr_base": ("flickr30k-retrieval", "paper"),
    "retrieval_flickr_large": ("flickr30k-retrieval", "paper"),
    "nlvr2_base": ("nlvr2", "paper"),
    "refcoco_base": ("refcoco-testa", "mmpretrain"),
    "visdial_base": ("visdial", "paper"),
}


@command(
    "test",
    example="openblip test blip-base_8xb32_caption blip-base_3rdparty_caption --cfg-options data=coco --out out.json",
)
@argument("recipe", metavar="RECIPE", help="Recipe, or configuration of mmpretrain, to take the benchmark from.")
@argument("checkpoint", metavar="CHECKPOINT", help="Model to evaluate, as for --model elsewhere.")
@option(
    "--work-dir",
    type=o.PATH,
    metavar="DIR",
    show_default="none",
    help="Folder to write everything to, and to resume from.",
)
@option(
    "--out",
    type=o.PATH,
    metavar="FILE",
    show_default="none",
    help="JSON file to write the predictions or the metrics to.",
)
@option("--out-item", default="pred", help="Content of --out: pred or metrics.")
@option(
    "--cfg-options",
    metavar="KEY=VALUE",
    multiple=True,
    help="Setting to use: data=DIR, protocol=NAME, benchmark=NAME or limit=N; repeat the option for more.",
)
@option("--amp", is_flag=True, help="Compute in half precision.")
@option("--show-dir", type=o.PATH, metavar="DIR", show_default="none", help="Folder to write the HTML report to.")
@o.device_option
@o.offline_option
def evaluate(
    recipe: str,
    checkpoint: str,
    work_dir: Path | None,
    out: Path | None,
    out_item: str,
    cfg_options: tuple[str, ...],
    amp: bool,
    show_dir: Path | None,
    device: str,
    offline: bool,
) -> None:
    """Evaluate a checkpoint on the benchmark of a recipe: `openblip eval run` with the options of mmpretrain."""
    if out_item not in ("metrics", "pred"):
        raise click.UsageError(f"--out-item is metrics or pred, not {out_item!r}")
    if out is not None and out.suffix in (".pkl", ".pickle"):
        raise click.UsageError(f"--out {out}: results are written as JSON; name it .json")
    settings = _settings(cfg_options)
    name, preset = _benchmark(recipe, settings)

    from openblip.evaluation import protocols
    from openblip.evaluation.files import write_json
    from openblip.evaluation.protocols.base import need_files

    protocol, data = protocols.find(name), Path(settings.get("data", "data"))
    if out is not None and out_item == "pred" and protocol.task == "retrieval" and name != "visdial":
        raise click.UsageError("--out of retrieval takes --out-item metrics; its rankings go to --work-dir")
    need_files(protocol, data, protocol.preset(preset))
    blip = o.ModelOptions(checkpoint, device, "torch", "bf16" if amp else "fp32", None, None, None, offline).load()

    from openblip.evaluation import run

    limit = int(settings["limit"]) if "limit" in settings else None
    found = run.run(protocol, blip, data, preset=preset, limit=limit, out=work_dir)
    metrics = {
        their_name(key, protocol.task): their_value(key, protocol.task, value) for key, value in found.metrics.items()
    }
    if show_dir is not None:
        from openblip.evaluation.report import write_report

        write_report(show_dir / "report.html", f"{name}: {checkpoint}", found.metrics, found.notes, found.shown)
    if out is not None:
        write_json(out, metrics if out_item == "metrics" else [[k, v] for k, v in found.predictions.items()])
    if metrics:
        print_table(["metric", "value"], [[key, "-" if v is None else f"{v:.4f}"] for key, v in metrics.items()])
    for note in found.notes:
        click.echo(note)
    for key, error in found.failed.items():
        report_bad(key, Exception(error))
    finish(len(found.failed), len(found.shown))


def their_name(key: str, task: str) -> str:
    """mmpretrain's name of a metric."""
    if task == "retrieval" and "_r" in key and key.rsplit("_r", 1)[1].isdigit():
        side, k = key.rsplit("_r", 1)
        return f"{'i2t' if side == 'txt' else 't2i'}/retrieval/Recall@{k}"
    names = {
        ("vqa", "accuracy"): "VQA/acc",
        ("nlvr", "accuracy"): "accuracy/top1",
        ("grounding", "accuracy"): "visual-grounding/acc",
        ("grounding", "mean_IoU"): "visual-grounding/miou",
    }
    return names.get((task, key), key)


def their_value(key: str, task: str, value: float | None) -> float | None:
    """On mmpretrain's scale: accuracies and recalls in percent, captions and boxes as ours."""
    percent = task in ("vqa", "nlvr") or key.startswith(("txt_r", "img_r", "vid_r", "r_mean"))
    return 100 * value if percent and value is not None else value


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or key not in ("data", "protocol", "benchmark", "limit"):
            raise click.UsageError(f"--cfg-options {pair!r}: data=DIR, protocol=NAME, benchmark=NAME or limit=N")
        found[key] = value
    if not found.get("limit", "1").isdecimal():
        raise click.UsageError(f"limit is a number, not {json.dumps(found['limit'])}")
    return found


def _benchmark(recipe: str, settings: dict[str, Any]) -> tuple[str, str]:
    name, preset = CONFIGS.get(Path(recipe).name.removesuffix(".py").removesuffix(".yaml"), ("", ""))
    name, preset = settings.get("benchmark", name), settings.get("protocol", preset or "paper")
    if not name:
        raise click.UsageError(f"no benchmark is known for {recipe!r}; give one with --cfg-options benchmark=NAME")
    return name, preset
