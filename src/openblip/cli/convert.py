"""`openblip convert`: write a checkpoint in the format of another library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from openblip.checkpoints.published import FAMILIES
from openblip.cli.command import argument, command, option
from openblip.cli.options import PATH, offline_option, prepare
from openblip.errors import CheckpointError
from openblip.model.config import MODEL_KINDS, ModelKind
from openblip.tasks import did_you_mean


@command(example="openblip convert model_base_caption_capfilt_large.pth my-captioner --to hub")
@argument("source", metavar="SRC", help="Folder, .pth file, hub id or published name to read.")
@argument("destination", type=PATH, metavar="DST", help="Folder (hub) or .pth file (other formats) to write.")
@option("--to", metavar="FORMAT", default="hub", help=f"Format to write: {', '.join(FAMILIES)}.")
@option(
    "--task",
    default="",
    metavar="TASK",
    show_default="the source's task",
    help="Task of the model to convert, for a bundle or a file that fits several tasks.",
)
@option(
    "--tokenizer",
    metavar="PATH",
    show_default="the source's vocabulary",
    help="Vocabulary to use: a vocab.txt or its folder.",
)
@option(
    "--config",
    default="",
    metavar="JSON",
    show_default="none",
    help='Settings that SRC lacks or that need correction, such as {"vision": {"heads": 4}}.',
)
@option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@offline_option
def convert(
    source: str,
    destination: Path,
    to: str,
    task: str,
    tokenizer: str | None,
    config: str,
    overwrite: bool,
    offline: bool,
) -> None:
    """Convert a checkpoint to the format of another library."""
    if to not in FAMILIES:
        hint = did_you_mean(to, FAMILIES)
        raise click.UsageError(f"--to must be one of {', '.join(FAMILIES)}, got {to!r}{hint}")
    if task and task not in MODEL_KINDS:
        names = ", ".join(MODEL_KINDS)
        raise click.UsageError(f"--task must be one of {names}, got {task!r}{did_you_mean(task, MODEL_KINDS)}")
    overrides = _parse_object("--config", config) if config else None
    if not overwrite and (destination.is_file() or (destination.is_dir() and any(destination.iterdir()))):
        raise CheckpointError(f"{destination} exists; choose another destination, or pass --overwrite")
    prepare(offline=offline)

    from openblip.checkpoints import read, write
    from openblip.checkpoints.folder import Bundle
    from openblip.checkpoints.resolve import resolve

    kind = cast("ModelKind", task) or None
    if kind is None and (bundle := Bundle.find(source)) is not None:
        raise click.UsageError(f"{source} is a bundle of {', '.join(bundle.models)}: choose one with --task")
    path = resolve(source, kind)
    # A .pth holds no vocabulary, so converting one to another needs none.
    vocabulary = tokenizer or (None if to == "hub" else False)
    model = read.load(path, task=kind, config=overrides, tokenizer=vocabulary)
    write.save(model, destination, to=to)
    for note in model.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{destination}: the {model.config.task} model of {source}, from {model.family} to {to}")


def _parse_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} must be a JSON object, got {text}")
    return value
