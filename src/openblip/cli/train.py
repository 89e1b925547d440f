"""``openblip train``: from a recipe, or from data of your own and a model to start from.

One process, or many under torchrun: ``torchrun --nproc-per-node 8 --no-python openblip train run RECIPE.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from openblip.cli import options as o
from openblip.errors import ConfigError

if TYPE_CHECKING:
    from openblip.training.config import Name, Recipe

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train: by a published recipe, or fine-tune a model on your own data.",
    epilog="Many processes: torchrun --nproc-per-node 8 --no-python openblip train ...",
)

Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="Settings to change, as in schedule.lr=1e-5."),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in its folder, if there is one; else begin it.")
]
Out: TypeAlias = Annotated[
    str, typer.Option("--out", metavar="DIR", show_default="runs/TASK", help="Folder of all that comes of the run.")
]
Data: TypeAlias = Annotated[
    list[str],
    typer.Option("--data", metavar="PATH", help="What to train on: a folder, .jsonl, .csv, .parquet, .tar, hub:NAME."),
]
Val: TypeAlias = Annotated[
    list[str] | None, typer.Option("--val", metavar="PATH", show_default="none", help="Data to measure progress on.")
]
Images: TypeAlias = Annotated[
    str | None,
    typer.Option("--images", metavar="DIR", show_default="beside the data", help="Where relative pictures lie."),
]
Start: TypeAlias = Annotated[
    str, typer.Option("--from", metavar="NAME", help="What to start from: pocket, base, large, a folder, a .pth ...")
]
Lora: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="r=16[,alpha=32]",
        show_default="full fine-tuning",
        help="Train small corrections (LoRA) only.",
    ),
]
Epochs: TypeAlias = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")]
Rate: TypeAlias = Annotated[
    float | None,
    typer.Option("--lr", show_default="published; ten times that with LoRA", help="Learning rate at its highest."),
]
Batch: TypeAlias = Annotated[int, typer.Option("--batch-size", min=1, help="Samples computed at a time.")]


@app.command("run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", show_default=False, help="A file of settings.")],
    overrides: Overrides = None,
    resume: Resume = False,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Train as a recipe says.

    \b
    Example:
      openblip train run recipes/caption_coco_base.yaml data.images=coco out=runs/coco
    """
    from openblip.training.config import read_recipe

    _train(read_recipe(recipe, overrides or []), resume, threads, offline)


def _command(name: Name, what: str, example: str) -> Callable[..., None]:
    """The command that fine-tunes for one task."""

    def command(
        data: Data,
        overrides: Overrides = None,
        start: Start = o.DEFAULT_MODEL,
        val: Val = None,
        images: Images = None,
        lora: Lora = None,
        epochs: Epochs = 5,
        lr: Rate = None,
        batch_size: Batch = 16,
        device: o.Device = "auto",
        precision: o.Precision = "fp32",
        out: Out = "",
        resume: Resume = False,
        threads: o.Threads = None,
        offline: o.Offline = False,
    ) -> None:
        from openblip.training.config import from_table
        from openblip.training.settings import override

        table = _table(name, data, start, lora)
        table["data"] |= {"val": val or [], "images": images}
        table |= {"epochs": epochs, "batch_size": batch_size, "out": out}
        table["run"] = {"device": device, "precision": precision}
        if lr is not None:
            table["schedule"] = {**table["schedule"], "lr": lr}
        _train(from_table(override(table, overrides or [])), resume, threads, offline)

    command.__doc__ = f"{what}\n\n    \b\n    Example:\n      openblip train {name} {example}\n    "
    return command


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
        typer.echo(result.model)


for _name, _what, _example in (
    ("caption", "Fine-tune a model that describes pictures, on pictures with captions.", "--data my.jsonl --lora r=16"),
    ("vqa", "Fine-tune a model that answers questions, on pictures with questions and answers.", "--data qa.jsonl"),
    ("retrieval", "Fine-tune a model that matches pictures and texts, on pictures with captions.", "--data my.jsonl"),
    ("nlvr", "Fine-tune a model that judges statements about two pictures.", "--data pairs.jsonl --from base"),
    ("grounding", "Fine-tune a model that finds what an expression names.", "--data refs.jsonl --from base"),
    ("visdial", "Fine-tune a model that ranks answers in dialogs.", "--data visdial_1.0_train.json --from base"),
):
    app.command(_name)(_command(_name, _what, _example))  # type: ignore[arg-type]
