"""``openblip models``: what was published, by whom, and under which names."""

from __future__ import annotations

from dataclasses import asdict

import click

from openblip.checkpoints.published import FAMILIES, PUBLISHED, Published
from openblip.cli.command import argument, command, option
from openblip.cli.console import print_json, print_table
from openblip.cli.options import json_option
from openblip.tasks import NETWORKS


@command(example="openblip models --task caption")
@argument("pattern", default="", metavar="[WORD]", help="List only checkpoints with this word in one of their names.")
@option(
    "--task",
    default="",
    show_default="all",
    help=f"List only this task: {', '.join(NETWORKS[:-1])} or {NETWORKS[-1]}.",
)
@option("--family", default="", show_default="all", help="List only this family: hub, salesforce, lavis or mmpretrain.")
@option("--size", default="", show_default="all", help="List only checkpoints with this image encoder: base or large.")
@json_option
def models(pattern: str, task: str, family: str, size: str, json: bool) -> None:
    """List the published checkpoints, each with the names that other libraries use. `--model` takes any of them."""
    _known("--task", task, set(NETWORKS))
    _known("--family", family, set(FAMILIES))
    _known("--size", size, {entry.size for entry in PUBLISHED})
    chosen = [
        entry
        for entry in PUBLISHED
        if task in ("", entry.task)
        and family in ("", entry.family)
        and size in ("", entry.size)
        and any(pattern.casefold() in name.casefold() for name in entry.names)
    ]
    if json:
        for entry in chosen:
            print_json(_record(entry))
    else:
        print_table(("name", "task", "size", "px", "family", "trained on", "also called"), map(_row, chosen))


def _known(option: str, value: str, choices: set[str]) -> None:
    if value and value not in choices:
        raise click.UsageError(f"{option} is one of {', '.join(sorted(choices))}, not {value!r}")


def _record(entry: Published) -> dict[str, object]:
    return asdict(entry) | {"file": entry.file, "names": entry.names}


def _row(entry: Published) -> tuple[object, ...]:
    known = {entry.name, entry.file, entry.address}
    others = ", ".join(name for name in entry.names if name not in known)
    return entry.name, entry.task, entry.size, entry.image_size, entry.family, entry.data, others
