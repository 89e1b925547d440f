"""Printing: tables, JSON lines and errors, and the exit code of a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from openblip.cli.command import FAILED, SOME_FAILED
from openblip.io.jsonlines import dumps


def print_json(record: dict[str, Any]) -> None:
    """Print an object as one line of JSON on standard output, with escapes if the output cannot encode its texts."""
    line = dumps(record)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(record)
    click.echo(line)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output: folded to the width of a terminal, and in full into a pipe or a file.

    On a terminal, names in the first column are not folded: those wider than half of it are shortened in the middle.

    Args:
        columns: The headings.
        rows: The cells of each row. Floats are rounded, and `None` is an empty cell.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    console = Console(width=None if sys.stdout.isatty() else 100_000)
    widest = max(24, console.width // 2)
    for number, column in enumerate(columns):
        table.add_column(shorten_path(column, widest), overflow="fold", no_wrap=number == 0)
    for row in rows:
        cells = []
        for cell in row:
            if isinstance(cell, bool):
                cells.append("true" if cell else "false")
            elif isinstance(cell, float):
                is_small = 0 < abs(cell) < 0.001  # such as the probability of a box, a product of four
                cells.append(f"{cell:.2g}" if is_small else f"{cell:.3f}")
            else:
                cells.append("" if cell is None else printable_line(str(cell)))
        table.add_row(*map(Text, [shorten_path(cells[0], widest), *cells[1:]]))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def printable_line(text: str) -> str:
    """Return a text as one line that a terminal shows as it is: control characters become escapes such as `\\n`."""
    return "".join(
        letter.encode("unicode_escape").decode() if letter < " " or "\x7f" <= letter <= "\x9f" else letter
        for letter in text
    )


def shorten_path(path: str, width: int) -> str:
    """Return a path of at most `width` characters, with an ellipsis for folders before the file name.

    A file name that is itself too long loses its middle, and keeps its suffix.
    """
    if len(path) <= width:
        return path
    folder, separator, name = path.rpartition("/")
    room = width - len(name) - 2
    if separator and room >= 1:
        return f"{folder[:room]}…/{name}"
    tail = width // 2
    return f"{name[: width - tail - 1]}…{name[-tail:]}" if len(name) > width - 2 else f"…/{name}"


def report_bad(name: object, error: Exception) -> None:
    """Print the error of one item on standard error."""
    click.echo(f"error: {printable_line(f'{name}: {error}')}", err=True)


def finish(failed: int, total: int) -> None:
    """Exit with code 1 if all items failed, or 3 if some did; return if none failed.

    Args:
        failed: Number of items that failed.
        total: Number of all items.

    Raises:
        click.exceptions.Exit: Some items failed.
    """
    if failed:
        raise click.exceptions.Exit(FAILED if failed == total else SOME_FAILED)
