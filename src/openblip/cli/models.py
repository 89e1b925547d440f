"""``openblip models``: what was published, by whom, and under which names."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from openblip.checkpoints.published import FAMILIES, PUBLISHED, Published
from openblip.cli.console import print_json, print_table
from openblip.cli.options import Json


def models(
    pattern: Annotated[
        str,
        typer.Argument(metavar="[WORD]", show_default=False, help="Only those with this word in one of their names."),
    ] = "",
    task: Annotated[
        str,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Only models of this task: caption, vqa, retrieval, nlvr, grounding or pretrain.",
        ),
    ] = "",
    family: Annotated[
        str, typer.Option("--family", metavar="FAMILY", help="Only hub, salesforce, lavis or mmpretrain.")
    ] = "",
    size: Annotated[
        str, typer.Option("--size", metavar="SIZE", help="Only image encoders that are base or large.")
    ] = "",
    json: Json = False,
) -> None:
    """List the published checkpoints.

    Each with the names that other libraries know it by; `--model` takes any of them.

    \b
    Example:
      openblip models --task caption
    """
    _known("--task", task, {entry.task for entry in PUBLISHED})
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
        raise typer.BadParameter(f"{option} is one of {', '.join(sorted(choices))}, not {value!r}")


def _record(entry: Published) -> dict[str, object]:
    return asdict(entry) | {"file": entry.file, "names": entry.names}


def _row(entry: Published) -> tuple[object, ...]:
    known = {entry.name, entry.file, entry.address}
    others = ", ".join(name for name in entry.names if name not in known)
    return entry.name, entry.task, entry.size, entry.image_size, entry.family, entry.data, others
