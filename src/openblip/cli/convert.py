"""``openblip convert``: a checkpoint of any family, written as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from openblip.checkpoints.published import FAMILIES
from openblip.cli.options import Offline, To, prepare
from openblip.errors import CheckpointError
from openblip.model.config import MODEL_KINDS, ModelKind


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", show_default=False, help="A folder, a .pth, a hub id or a published name.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", show_default=False, help="A folder for `hub`, a .pth file for the others.")
    ],
    to: To = "hub",
    task: Annotated[
        str,
        typer.Option(
            "--task", metavar="TASK", show_default="the source's own", help="The task whose model is taken from SRC."
        ),
    ] = "",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="PATH", show_default="the source's own", help="A vocab.txt or its folder."),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="JSON",
            show_default="none",
            help='What SRC does not tell or tells wrongly, as {"vision": {"heads": 4}}.',
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is there.")] = False,
    offline: Offline = False,
) -> None:
    """Write a checkpoint as another library wants it.

    The formats are hub, salesforce, lavis and mmpretrain.

    \b
    Example:
      openblip convert model_base_caption_capfilt_large.pth my-captioner --to hub
    """
    if to not in FAMILIES:
        raise typer.BadParameter(f"--to is one of {', '.join(FAMILIES)}, not {to!r}")
    if task and task not in MODEL_KINDS:
        raise typer.BadParameter(f"--task is one of {', '.join(MODEL_KINDS)}, not {task!r}")
    given = _object("--config", config) if config else None
    if not overwrite and (destination.is_file() or (destination.is_dir() and any(destination.iterdir()))):
        raise CheckpointError(f"{destination} is already there; give another place, or --overwrite")
    prepare(offline=offline)

    from openblip.checkpoints import bundle, fetch, read, write

    wanted = cast("ModelKind", task) or None
    found = bundle.find(source)
    if found and wanted is None:
        raise CheckpointError(f"{source} is a bundle of {', '.join(found.models)}: say which one with --task")
    place = found.locate(wanted) if found and wanted else fetch.resolve(source)
    # A .pth holds no vocabulary, so from one to another none has to be found.
    vocabulary = tokenizer or (None if to == "hub" else False)
    loaded = read.load(place, task=wanted, config=given, tokenizer=vocabulary)
    write.save(loaded, destination, to=to)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{destination}: the {loaded.config.task} model of {source}, from {loaded.family} to {to}")


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{option} is not a JSON object: {text}")
    return found
