"""``openblip train``: from a recipe, or from data of your own and a model to start from.

One process, or many under torchrun: ``torchrun --nproc-per-node 8 --no-python openblip train run RECIPE.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openblip.cli import options as o
from openblip.cli.command import argument, group, option
from openblip.errors import ConfigError

if TYPE_CHECKING:
    from openblip.training.config import Name, Recipe


@group("train")
def app() -> None:
    """Train by a published recipe, or fine-tune a model on your own data.

    For many processes, use torchrun --nproc-per-node 8 --no-python openblip train ...
    """


overrides_argument = argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Settings to change, such as schedule.lr=1e-5."
)
resume_option = option("--resume", is_flag=True, help="Resume the run in its folder, if there is one.")


@app.command("run", example="openblip train run recipes/caption_coco_base.yaml data.images=coco out=runs/coco")
@argument("recipe", type=o.PATH, metavar="RECIPE.yaml", help="File of settings.")
@overrides_argument
@resume_option
@o.threads_option
@o.offline_option
def run_recipe(recipe: Path, overrides: tuple[str, ...], resume: bool, threads: int | None, offline: bool) -> None:
    """Train by a recipe."""
    from openblip.training.config import read_recipe

    _train(read_recipe(recipe, list(overrides)), resume, threads, offline)


def _add_command(name: Name, description: str, example: str) -> None:
    """Add the command that fine-tunes for one task."""

    @app.command(name, help=description, example=f"openblip train {name} {example}")
    @overrides_argument
    @option(
        "--data",
        metavar="PATH",
        multiple=True,
        required=True,
        help="Training data: a folder, .jsonl, .csv, .parquet, .tar or hub:NAME; repeat the option for more.",
    )
    @option(
        "--from",
        "start",
        metavar="NAME",
        default=o.DEFAULT_MODEL,
        help="Model to start from: pocket, base, large, a folder or a .pth file.",
    )
    @option("--val", metavar="PATH", multiple=True, show_default="none", help="Data to measure progress on.")
    @option(
        "--images",
        metavar="DIR",
        show_default="the folder of the data",
        help="Folder to resolve relative image paths against.",
    )
    @option(
        "--lora",
        metavar="r=16[,alpha=32]",
        show_default="full fine-tuning",
        help="Train small corrections (LoRA) only.",
    )
    @option("--epochs", type=o.POSITIVE, default=5, help="Passes over the data.")
    @option(
        "--lr", type=float, show_default="the published rate; ten times that with LoRA", help="Highest learning rate."
    )
    @option("--batch-size", type=o.POSITIVE, default=16, help="Samples to compute at once.")
    @o.device_option
    @o.precision_option
    @option("--out", metavar="DIR", default="", show_default="runs/TASK", help="Folder to write the run to.")
    @resume_option
    @o.threads_option
    @o.offline_option
    def train(
        overrides: tuple[str, ...],
        data: tuple[str, ...],
        start: str,
        val: tuple[str, ...],
        images: str | None,
        lora: str | None,
        epochs: int,
        lr: float | None,
        batch_size: int,
        device: str,
        precision: str,
        out: str,
        resume: bool,
        threads: int | None,
        offline: bool,
    ) -> None:
        from openblip.training.config import from_table
        from openblip.training.settings import override

        table = _table(name, list(data), start, lora)
        table["data"] |= {"val": list(val), "images": images}
        table |= {"epochs": epochs, "batch_size": batch_size, "out": out}
        table["run"] = {"device": device, "precision": precision}
        if lr is not None:
            table["schedule"] = {**table["schedule"], "lr": lr}
        _train(from_table(override(table, list(overrides))), resume, threads, offline)


def _table(name: Name, data: list[str], start: str, lora: str | None) -> dict[str, Any]:
    from openblip.training.config import example

    table = example(name, data, start)
    if lora is not None:
        table["lora"] = _lora(lora)
        table["schedule"] = {"lr": 10 * table["schedule"]["lr"]}
    return table


def _lora(text: str) -> dict[str, Any]:
    """``r=16,alpha=32,targets=query+value`` as a table."""
    table: dict[str, Any] = {}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        if not separator or not value:
            raise ConfigError(f"--lora {text!r}: write r=16, or r=16,alpha=32,targets=query+value")
        table[key.strip()] = value.split("+") if key.strip() in ("targets", "also") else value
    return table


def _train(recipe: Recipe, resume: bool, threads: int | None, offline: bool) -> None:
    o.prepare(threads=threads, offline=offline)
    from openblip.training.reports import Bar
    from openblip.training.run import run

    bar = Bar()
    result = run(recipe, resume=resume, reporters=[bar], notify=bar.note)
    if result.first:
        if len(result.report):
            bar.note(str(result.report))
        click.echo(result.model)


for _name, _description, _example in (
    ("caption", "Fine-tune a model that describes pictures, on pictures with captions.", "--data my.jsonl --lora r=16"),
    ("vqa", "Fine-tune a model that answers questions, on pictures with questions and answers.", "--data qa.jsonl"),
    ("retrieval", "Fine-tune a model that matches pictures and texts, on pictures with captions.", "--data my.jsonl"),
    ("nlvr", "Fine-tune a model that judges statements about two pictures.", "--data pairs.jsonl --from base"),
    ("grounding", "Fine-tune a model that finds what an expression names.", "--data refs.jsonl --from base"),
    ("visdial", "Fine-tune a model that ranks answers in dialogs.", "--data visdial_1.0_train.json --from base"),
):
    _add_command(_name, _description, _example)  # type: ignore[arg-type]
