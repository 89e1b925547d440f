"""`openblip models`: list the published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args

import click

from openblip.checkpoints.published import BUNDLES, FAMILIES, PUBLISHED, Size
from openblip.cli.command import argument, command, option
from openblip.cli.console import print_json, print_table
from openblip.cli.options import json_option
from openblip.tasks import NETWORKS, did_you_mean

SIZES = get_args(Size)
BUNDLE_NOTES = {
    "pocket": "in the package, works offline",
    "base": "the published base models, downloaded when used",
    "large": "the published large models, downloaded when used",
}


@command(example="openblip models --task caption")
@argument("pattern", default="", metavar="[WORD]", help="List only checkpoints with this word in one of their names.")
@option(
    "--task",
    default="",
    show_default="all",
    help=f"List only this task: {', '.join(NETWORKS[:-1])} or {NETWORKS[-1]}.",
)
@option("--family", default="", show_default="all", help=f"List only this family: {', '.join(FAMILIES)}.")
@option("--size", default="", show_default="all", help="List only checkpoints with this image encoder: base or large.")
@json_option
def models(pattern: str, task: str, family: str, size: str, json: bool) -> None:
    """List the bundles and the published checkpoints.

    A bundle has a model for each task. Each row lists the names that other libraries use. --model accepts all of them.
    """
    _check_choice("--task", task, NETWORKS)
    _check_choice("--family", family, FAMILIES)
    _check_choice("--size", size, get_args(Size))
    entries = [
        entry
        for entry in PUBLISHED
        if task in ("", entry.task)
        and family in ("", entry.family)
        and size in ("", entry.size)
        and any(pattern.casefold() in name.casefold() for name in entry.names)
    ]
    bundles = {
        name: members
        for name, members in _bundles().items()
        if not family and task in ("", *members) and size in ("", name) and pattern.casefold() in name
    }
    if json:
        for name, members in bundles.items():
            print_json({"name": name, "bundle": members})
        for entry in entries:
            print_json(asdict(entry) | {"file": entry.file, "names": entry.names})
        return
    rows: list[tuple[object, ...]] = [
        (name, ", ".join(members), name if name in SIZES else "small", "", "bundle", "", BUNDLE_NOTES[name])
        for name, members in bundles.items()
    ]
    for entry in entries:
        aliases = ", ".join(name for name in entry.names if name not in (entry.name, entry.file, entry.address))
        rows.append((entry.name, entry.task, entry.size, entry.image_size, entry.family, entry.data, aliases))
    print_table(("name", "task", "size", "px", "family", "trained on", "also called"), rows)


def _bundles() -> dict[str, dict[str, str]]:
    """Return the models of each bundle by task."""
    from openblip.checkpoints.folder import Bundle

    pocket = Bundle.find("pocket")
    members: dict[str, str] = {} if pocket is None else {task: f"pocket/{task}" for task in pocket.models}
    bundles = {"pocket": members}
    for name, models in BUNDLES.items():
        bundles[name] = {str(task): model for task, model in models.items()}
    return bundles


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value and value not in choices:
        hint = did_you_mean(value, choices)
        raise click.UsageError(f"{option} must be one of {', '.join(choices)}, got {value!r}{hint}")
