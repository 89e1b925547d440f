"""Progress bars on standard error. Off a terminal nothing is drawn, and rich is not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class Bar:
    """A progress bar, or nothing where there is no terminal."""

    def __init__(self, progress: Progress | None, description: str, done: int, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=done, status="") if progress else None

    @property
    def visible(self) -> bool:
        """Whether the bar is drawn."""
        return self._progress is not None

    def advance(self, count: int = 1, *, status: str | None = None) -> None:
        """Add to the number of items done.

        Args:
            count: Items, or bytes, done since the last call.
            status: New text after the bar.
        """
        if self._progress is not None and self._task is not None:
            fields = {} if status is None else {"status": status}
            self._progress.update(self._task, advance=count, **fields)  # type: ignore[arg-type]

    def update(
        self,
        done: int | None = None,
        total: int | None = None,
        *,
        description: str | None = None,
        status: str | None = None,
    ) -> None:
        """Set the numbers and texts of the bar. `None` leaves a value as it is.

        Args:
            done: Items, or bytes, done.
            total: Items, or bytes, in all.
            description: Text before the bar.
            status: Text after the bar.
        """
        if self._progress is not None and self._task is not None:
            fields = {} if status is None else {"status": status}
            self._progress.update(
                self._task,
                completed=done,
                total=total,
                description=description,
                **fields,  # type: ignore[arg-type]
            )

    def print(self, text: str) -> None:
        """Print a line on standard error, above the bar.

        Args:
            text: The line. It is not parsed for markup.
        """
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(
    description: str = "",
    total: int | None = None,
    *,
    done: int = 0,
    unit: Literal["items", "bytes"] = "items",
    transient: bool = True,
    visible: bool | None = None,
) -> Iterator[Bar]:
    """Show a progress bar while the block runs.

    Args:
        description: Text before the bar.
        total: Items, or bytes, in all; `None` if unknown.
        done: Items, or bytes, done already.
        unit: Whether the numbers count items, or bytes, which are shown with their rate.
        transient: Remove the bar at the end.
        visible: Draw the bar. The default is whether standard error is a terminal.

    Yields:
        The bar.
    """
    if not (sys.stderr.isatty() if visible is None else visible):
        yield Bar(None, description, done, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[status]}", markup=False), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=transient) as progress:
        yield Bar(progress, description, done, total)
