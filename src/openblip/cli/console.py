"""What commands print: a table for people, one JSON object per line for machines, one line per bad item."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer

SOME_FAILED = 3
FAILED = 1


def print_json(record: dict[str, Any]) -> None:
    """One object on one line of standard output, UTF-8 left readable."""
    typer.echo(json.dumps(record, ensure_ascii=False))


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
        typer.echo(line.rstrip())


@dataclass(frozen=True)
class Line:
    """One result for one input: ``cells`` for people and ``record`` for machines, or the ``error`` in their place."""

    source: str
    cells: Sequence[object] = ()
    record: Mapping[str, object] = field(default_factory=dict)
    error: Exception | None = None


def print_results(columns: Sequence[str], lines: Iterable[Line], total: int, *, as_json: bool) -> None:
    """Print results as they come (JSON) or as one table at the end; a bad input gets its line, and the exit code tells.

    ``total`` is the number of inputs, for a progress bar on the terminal. Raises :class:`typer.Exit` with 3 if some
    inputs failed, 1 if all did.
    """
    rows: list[Sequence[object]] = []
    failed, sources = set[str](), set[str]()
    for line in _counted(lines, total):
        sources.add(line.source)
        if line.error is not None:
            failed.add(line.source)
            report_bad(line.source, line.error)
            if as_json:
                print_json({"image": line.source, "error": str(line.error)})
        elif as_json:
            print_json({"image": line.source, **line.record})
        else:
            rows.append([line.source, *line.cells])
    if rows:
        print_table(["image", *columns], rows)
    finish(len(failed), len(sources))


def _counted(lines: Iterable[Line], total: int) -> Iterator[Line]:
    """The lines, with a bar on standard error that counts inputs and goes away at the end; none off a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    off = total < 2 or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=off) as progress:
        bar = progress.add_task("", total=total)
        last = None
        for line in lines:
            if line.source != last:
                progress.advance(bar)
                last = line.source
            yield line


def report_bad(name: object, error: Exception) -> None:
    """The one line that a bad item gets, on standard error."""
    typer.echo(f"error: {name}: {error}", err=True)


def finish(failed: int, total: int) -> None:
    """End a command that went through ``total`` items of which ``failed`` could not be done: exit code 0, 3 or 1."""
    if failed:
        raise typer.Exit(FAILED if failed == total else SOME_FAILED)
