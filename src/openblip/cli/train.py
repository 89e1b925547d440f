"""`openblip train`: by a recipe, or from your own data and a model to start from.

One process, or several under torchrun: `torchrun --nproc-per-node 8 --no-python openblip train run RECIPE.yaml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openblip.cli import options as o
from openblip.cli.command import INPUT, MODEL, OUTPUT, argument, group, option, usage_errors
from openblip.errors import ConfigError
from openblip.tasks import TASKS, TaskSpec

if TYPE_CHECKING:
    from openblip.training.config import LoraSettings, Recipe

LORA_LR_FACTOR = 10  # adapters learn well at ten times the rate of full fine-tuning


@group("train")
def app() -> None:
    """Train with a recipe, or fine-tune on your own data.

    To train with several processes, run torchrun --nproc-per-node 8 --no-python openblip train ...
    """


overrides_argument = argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Settings to change, such as schedule.lr=1e-5."
)
resume_option = option("--resume", is_flag=True, help="Resume the run in its folder, if there is one.")


@app.command("run", example="openblip train run recipes/caption_coco_base.yaml data.images=coco out=runs/coco")
@argument("recipe", type=o.PATH, metavar="RECIPE.yaml", help="YAML file that describes the training run.")
@overrides_argument
@resume_option
@o.threads_option
@o.offline_option
def run_recipe(recipe: Path, overrides: tuple[str, ...], resume: bool, threads: int | None, offline: bool) -> None:
    """Train with a recipe."""
    from openblip.training.config import read_recipe

    with usage_errors(ConfigError):
        parsed = read_recipe(recipe, overrides)
    _train(parsed, resume, threads, offline)


def _add_command(task: TaskSpec) -> None:
    """Add the command that fine-tunes a model for one task."""

    @app.command(
        task.name,
        help=f"Fine-tune a model to {task.title}.",
        example=f"openblip train {task.name} --data my.jsonl --from base --lora r=16",
    )
    @overrides_argument
    @option(
        "--data",
        metavar="PATH",
        multiple=True,
        required=True,
        panel=INPUT,
        help="Training data: a folder, .jsonl, .csv, .parquet, .tar or hub:NAME; repeat the option for more.",
    )
    @option(
        "--val",
        metavar="PATH",
        multiple=True,
        show_default="none",
        panel=INPUT,
        help="Validation data to evaluate the model on during training.",
    )
    @option(
        "--images",
        metavar="DIR",
        show_default="the folder of the data",
        panel=INPUT,
        help="Folder to resolve relative image paths against.",
    )
    @option(
        "--from",
        "start",
        metavar="NAME",
        default=o.DEFAULT_MODEL,
        panel=MODEL,
        help="Model to start from: pocket, base, large, a folder or a .pth file.",
    )
    @option(
        "--lora",
        metavar="r=16[,alpha=32]",
        show_default="full fine-tuning",
        panel=MODEL,
        help="Train LoRA adapters of this rank instead of all weights.",
    )
    @option(
        "--teacher",
        metavar="NAME",
        show_default="none",
        panel=MODEL,
        help="Teacher to distill: base, large, a folder, a .pth file or module:function.",
    )
    @o.device_option
    @o.training_precision_option
    @option("--epochs", type=o.POSITIVE, default=5, help="Number of passes over the data.")
    @option(
        "--lr", type=float, show_default="the published rate; ten times that with LoRA", help="Highest learning rate."
    )
    @option("--batch-size", type=o.POSITIVE, default=16, help="Samples to process at once.")
    @option("--out", metavar="DIR", default="", show_default="runs/TASK", panel=OUTPUT, help="Folder for the results.")
    @resume_option
    @o.threads_option
    @o.offline_option
    def train(
        overrides: tuple[str, ...],
        data: tuple[str, ...],
        val: tuple[str, ...],
        images: str | None,
        start: str,
        lora: str | None,
        teacher: str | None,
        device: str,
        precision: Any,
        epochs: int,
        lr: float | None,
        batch_size: int,
        out: str,
        resume: bool,
        threads: int | None,
        offline: bool,
    ) -> None:
        from openblip.training.config import DataSettings, DistillSettings, RunSettings, Schedule, fine_tuning_recipe
        from openblip.training.config.loss import loss_class

        if lr is None:
            lr = loss_class(task.name).published.lr * (1 if lora is None else LORA_LR_FACTOR)
        with usage_errors(ConfigError):
            recipe = fine_tuning_recipe(
                task.name,
                start=(start,),
                data=DataSettings(train=data, val=val, images=images),
                lora=None if lora is None else _parse_lora(lora),
                distill=None if teacher is None else DistillSettings(teacher=teacher),
                schedule=Schedule(lr=lr),
                run=RunSettings(device=device, precision=precision),
                epochs=epochs,
                batch_size=batch_size,
                out=out,
            ).override(overrides)
        _train(recipe, resume, threads, offline)


def _parse_lora(text: str) -> LoraSettings:
    """Parse `r=16,alpha=32,target_modules=query+value`."""
    from openblip.training.config import LoraSettings, parsing

    table: dict[str, Any] = {}
    for assignment in text.split(","):
        key, separator, value = assignment.partition("=")
        if not separator or not value:
            raise ConfigError(f"--lora must look like r=16 or r=16,alpha=32,target_modules=query+value, got {text!r}")
        key = key.strip()
        table[key] = value.split("+") if key in ("target_modules", "modules_to_save") else value
    return parsing.build(LoraSettings, table, "lora.")


def _train(recipe: Recipe, resume: bool, threads: int | None, offline: bool) -> None:
    o.prepare(threads=threads, offline=offline)
    from openblip.training.reporters import BarReporter
    from openblip.training.run import run

    bar = BarReporter()
    result = run(recipe, resume=resume, reporters=[bar], notify=bar.print)
    if result.is_main:
        if len(result.report):
            bar.print(str(result.report))
        click.echo(result.model)


for _task in TASKS.values():
    if _task.name != "pretrain":  # needs a recipe: it starts from a ViT and a BERT
        _add_command(_task)
