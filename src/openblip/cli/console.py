"""What commands print: a table for people, one JSON object per line for machines, one line per bad item."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from openblip.cli.command import FAILED, SOME_FAILED


def print_json(record: dict[str, Any]) -> None:
    """One object on one line of standard output, UTF-8 left readable."""
    click.echo(json.dumps(record, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output: folded to a terminal's width, never cut when it goes into a pipe or a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 100_000)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def report_bad(name: object, error: Exception) -> None:
    """The one line that a bad item gets, on standard error."""
    click.echo(f"error: {name}: {error}", err=True)


def finish(failed: int, total: int) -> None:
    """End a command that went through ``total`` items of which ``failed`` could not be done: exit code 0, 3 or 1."""
    if failed:
        raise click.exceptions.Exit(FAILED if failed == total else SOME_FAILED)
