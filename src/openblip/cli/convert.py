"""``openblip convert``: a checkpoint of any family, written as any other."""

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


@command(example="openblip convert model_base_caption_capfilt_large.pth my-captioner --to hub")
@argument("source", metavar="SRC", help="Folder, .pth file, hub id or published name to read.")
@argument("destination", type=PATH, metavar="DST", help="Folder (hub) or .pth file (other formats) to write.")
@option("--to", metavar="FORMAT", default="hub", help="Format to write: hub, salesforce, lavis or mmpretrain.")
@option(
    "--task",
    default="",
    metavar="TASK",
    show_default="the source's task",
    help="Task to take the model of from a bundle.",
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
    help='Settings that SRC lacks or states wrongly, such as {"vision": {"heads": 4}}.',
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
        raise click.UsageError(f"--to is one of {', '.join(FAMILIES)}, not {to!r}")
    if task and task not in MODEL_KINDS:
        raise click.UsageError(f"--task is one of {', '.join(MODEL_KINDS)}, not {task!r}")
    given = _object("--config", config) if config else None
    if not overwrite and (destination.is_file() or (destination.is_dir() and any(destination.iterdir()))):
        raise CheckpointError(f"{destination} is already there; give another place, or --overwrite")
    prepare(offline=offline)

    from openblip.checkpoints import bundle, read, write
    from openblip.checkpoints.resolve import resolve

    wanted = cast("ModelKind", task) or None
    found = bundle.find(source)
    if found and wanted is None:
        raise CheckpointError(f"{source} is a bundle of {', '.join(found.models)}: say which one with --task")
    place = found.locate(wanted) if found and wanted else resolve(source)
    # A .pth holds no vocabulary, so from one to another none has to be found.
    vocabulary = tokenizer or (None if to == "hub" else False)
    loaded = read.load(place, task=wanted, config=given, tokenizer=vocabulary)
    write.save(loaded, destination, to=to)
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{destination}: the {loaded.config.task} model of {source}, from {loaded.family} to {to}")


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise click.UsageError(f"{option} is not a JSON object: {text}")
    return found
