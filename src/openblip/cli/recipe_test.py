"""`openblip test`: evaluate a checkpoint with the options of mmpretrain's `tools/test.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from openblip import defaults
from openblip.cli import options as o
from openblip.cli.command import Choice, argument, command, input_option, model_option, output_option
from openblip.cli.console import finish, report_bad
from openblip.cli.eval import print_evaluation
from openblip.tasks import did_you_mean


class Configuration(NamedTuple):
    """The benchmark of a configuration, and the reference implementation whose settings it uses."""

    benchmark: str
    preset: str


# Configurations of mmpretrain, and our recipes.
CONFIGURATIONS = {
    "blip-base_8xb32_caption": Configuration("coco-caption", "mmpretrain"),
    "blip-base_8xb32_nocaps": Configuration("nocaps", "mmpretrain"),
    "blip-base_8xb32_caption_flickr30k": Configuration("flickr30k-caption", "mmpretrain"),
    "blip-base_8xb32_vqa": Configuration("vqa-v2", "mmpretrain"),
    "blip-base_8xb32_okvqa": Configuration("okvqa", "mmpretrain"),
    "blip-base_8xb32_ocrvqa": Configuration("ocr-vqa", "mmpretrain"),
    "blip-base_8xb32_retrieval": Configuration("coco-retrieval", "mmpretrain"),
    "blip-base_8xb32_retrieval_flickr30k": Configuration("flickr30k-retrieval", "mmpretrain"),
    "blip-base_8xb32_nlvr": Configuration("nlvr2", "mmpretrain"),
    "blip-base_8xb16_refcoco": Configuration("refcoco-testa", "mmpretrain"),
    "caption_coco_base": Configuration("coco-caption", "paper"),
    "caption_coco_large": Configuration("coco-caption", "paper"),
    "vqa_v2_base": Configuration("vqa-v2", "paper"),
    "vqa_okvqa_base": Configuration("okvqa", "lavis"),
    "vqa_aokvqa_base": Configuration("aokvqa", "lavis"),
    "retrieval_coco_base": Configuration("coco-retrieval", "paper"),
    "retrieval_coco_large": Configuration("coco-retrieval", "paper"),
    "retrieval_flickr_base": Configuration("flickr30k-retrieval", "paper"),
    "retrieval_flickr_large": Configuration("flickr30k-retrieval", "paper"),
    "nlvr2_base": Configuration("nlvr2", "paper"),
    "refcoco_base": Configuration("refcoco-testa", "mmpretrain"),
    "visdial_base": Configuration("visdial", "paper"),
}


@command(
    "test",
    example="openblip test blip-base_8xb32_caption blip-base_3rdparty_caption --cfg-options data=coco --out out.json",
)
@argument("recipe", metavar="RECIPE", help="Recipe or mmpretrain configuration that names the benchmark.")
@argument("checkpoint", metavar="CHECKPOINT", help="Model to evaluate, as in --model of the other commands.")
@input_option(
    "--cfg-options",
    metavar="KEY=VALUE",
    multiple=True,
    help="Setting: data=DIR, preset=NAME, benchmark=NAME or limit=N; repeat the option for more.",
)
@output_option(
    "--work-dir",
    type=o.PATH,
    metavar="DIR",
    show_default="none",
    help="Folder for predictions, metrics and the server's file. A run that stopped is resumed from it.",
)
@output_option(
    "--out", type=o.PATH, metavar="FILE", show_default="none", help="JSON file for the predictions or the metrics."
)
@output_option(
    "--out-item",
    type=Choice(("pred", "metrics")),
    metavar="ITEM",
    default="pred",
    help="Content of --out: pred or metrics.",
)
@output_option(
    "--show-dir", type=o.PATH, metavar="DIR", show_default="none", help="Folder for the HTML report, report.html."
)
@model_option("--amp", is_flag=True, help="Compute in bf16 instead of fp32.")
@o.device_option
@o.offline_option
def evaluate(
    recipe: str,
    checkpoint: str,
    cfg_options: tuple[str, ...],
    work_dir: Path | None,
    out: Path | None,
    out_item: str,
    show_dir: Path | None,
    amp: bool,
    device: str,
    offline: bool,
) -> None:
    """Evaluate a checkpoint with the options of mmpretrain.

    Run `openblip eval run` on the benchmark of a recipe.
    """
    if out is not None and out.suffix in (".pkl", ".pickle"):
        raise click.UsageError(f"--out must be a JSON file (.json), got {out}")
    settings = parse_settings(cfg_options)
    name, preset = choose_benchmark(recipe, settings)

    from openblip.evaluation import protocols
    from openblip.evaluation.files import write_json

    task = protocols.find(name).task
    if out is not None and out_item == "pred" and task == "retrieval":
        raise click.UsageError("--out requires --out-item metrics for retrieval: rankings are written to --work-dir")
    benchmark = protocols.open_benchmark(name, Path(settings.get("data", "data")), preset)
    precision = "bf16" if amp else defaults.PRECISION
    blip = o.ModelOptions(checkpoint, device, defaults.ENGINE, precision, False, None, None, None, offline).load()

    from openblip.evaluation.run import run_benchmark

    limit = int(settings["limit"]) if "limit" in settings else None
    evaluation = run_benchmark(benchmark, blip, limit=limit, out=work_dir)
    metrics = {}
    for key, value in evaluation.metrics.items():
        metrics[mmpretrain_name(key, task)] = mmpretrain_value(key, task, value)
    if show_dir is not None:
        from openblip.evaluation.report import write_report

        title = f"{name}: {checkpoint}"
        write_report(show_dir / "report.html", title, evaluation.metrics, evaluation.notes, evaluation.report_items)
    if out is not None:
        predictions = [[item_id, prediction] for item_id, prediction in evaluation.predictions.items()]
        write_json(out, metrics if out_item == "metrics" else predictions)
    print_evaluation(metrics, evaluation.notes)
    for item_id, error in evaluation.failed.items():
        report_bad(item_id, Exception(error))
    finish(len(evaluation.failed), len(evaluation.report_items))


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Return the settings of `--cfg-options`."""
    settings = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or key not in ("data", "preset", "benchmark", "limit"):
            raise click.UsageError(
                f"--cfg-options must be data=DIR, preset=NAME, benchmark=NAME or limit=N, got {pair!r}"
            )
        settings[key] = value
    if not settings.get("limit", "1").isdecimal():
        raise click.UsageError(f"limit must be a number, got {settings['limit']!r}")
    return settings


def choose_benchmark(recipe: str, settings: dict[str, str]) -> Configuration:
    """Return the benchmark of a recipe or configuration, unless the settings name another one."""
    name = Path(recipe).name.removesuffix(".py").removesuffix(".yaml")
    benchmark, preset = CONFIGURATIONS.get(name, Configuration("", "paper"))
    benchmark, preset = settings.get("benchmark", benchmark), settings.get("preset", preset)
    if not benchmark:
        hint = did_you_mean(name, CONFIGURATIONS)
        raise click.UsageError(
            f"RECIPE must name a known benchmark, got {recipe!r}{hint}; or add --cfg-options benchmark=NAME"
        )
    return Configuration(benchmark, preset)


def mmpretrain_name(key: str, task: str) -> str:
    """Return mmpretrain's name of a metric."""
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


def mmpretrain_value(key: str, task: str, value: float | None) -> float | None:
    """Return a metric on mmpretrain's scale: accuracies and recalls in percent, captions and boxes unchanged."""
    is_percent = task in ("vqa", "nlvr") or key.startswith(("txt_r", "img_r", "vid_r", "r_mean"))
    return 100 * value if is_percent and value is not None else value
