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
    from openblip.training.config import Recipe


@group("train")
def app() -> None:
    """Train with a recipe, or fine-tune on your own data.

    To train with several processes, run torchrun --nproc-per-node 8 --no-python openblip train ...
    """


overrides_argument = argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Settings to change, such as schedule.lr=1e-5."
)
resume_option = option("--resume", is_flag=True, help="Continue an earlier run with the same output, if there is one.")


@app.command("run", example="openblip train run recipes/caption_coco_base.yaml data.images=coco out=runs/coco")
@argument("recipe", type=o.PATH, metavar="RECIPE.yaml", help="YAML file that describes the training run.")
@overrides_argument
@resume_option
@o.threads_option
@o.offline_option
def run_recipe(recipe: Path, overrides: tuple[str, ...], resume: bool, threads: int | None, offline: bool) -> None:
    """Train with a recipe."""
    from openblip.training.config import read_recipe

    o.prepare(offline=offline)
    with usage_errors(ConfigError):
        parsed = read_recipe(recipe, overrides)
    _train(parsed, resume, threads)


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
    @option("--lr", type=float, show_default="the published rate; ten times that with LoRA", help="Peak learning rate.")
    @option("--batch-size", type=o.POSITIVE, default=16, help="Samples per batch.")
    @option(
        "--patience",
        type=o.NATURAL,
        default=0,
        show_default="train to the end",
        help="Stop after N evaluations without a better result on --val, and keep the best model.",
    )
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
        patience: int,
        out: str,
        resume: bool,
        threads: int | None,
        offline: bool,
    ) -> None:
        o.prepare(offline=offline)
        from openblip.training.config import LoraSettings
        from openblip.training.fine_tune import build_recipe

        with usage_errors(ConfigError):
            recipe = build_recipe(
                task.name,
                data,
                val=val,
                images=images,
                start=start,
                lora=None if lora is None else LoraSettings.parse(lora),
                teacher=teacher,
                out=out,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                patience=patience,
                device=device,
                precision=precision,
            ).override(overrides)
        _train(recipe, resume, threads)


def _train(recipe: Recipe, resume: bool, threads: int | None) -> None:
    from openblip.training.fine_tune import train_recipe

    try:
        result = train_recipe(recipe, threads=threads, resume=resume)
    except KeyboardInterrupt as error:
        steps = [int(file.stem.rpartition("-")[2]) for file in (recipe.folder / "checkpoints").glob("*-[0-9]*.pt")]
        hint = "run the same command with --resume to continue" if steps else "there is no checkpoint yet"
        raise KeyboardInterrupt(f"{f'the last checkpoint is of step {max(steps)}; ' if steps else ''}{hint}") from error
    if result.is_main:
        click.echo(result.model)


for _task in TASKS.values():
    if _task.name != "pretrain":  # needs a recipe: it starts from a ViT and a BERT
        _add_command(_task)
