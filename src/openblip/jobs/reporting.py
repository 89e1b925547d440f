"""What a person sees while a job runs, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 10.0  # seconds between two lines where there is no terminal


class Reporter:
    """Says nothing. The base of those that do."""

    @contextmanager
    def running(self, total: int | None) -> Iterator[None]:
        """Around the whole run, over ``total`` items if that is known."""
        yield

    def advance(self) -> None:
        """One item is through."""

    def bad(self, name: str, reason: str) -> None:
        """The one line that a bad item gets."""

    def note(self, text: str) -> None:
        """Something else worth a line."""


class ConsoleReporter(Reporter):
    """Pictures per second, time left and failures. ``quiet`` leaves only the lines of bad items.

    ``lines`` says whether to give account where there is no terminal.
    """

    def __init__(self, *, quiet: bool = False, lines: bool = True) -> None:
        self.quiet, self.lines = quiet, lines
        self._bar: Any = None
        self._task: Any = None
        self._total: int | None = None
        self._count = self._failed = 0
        self._began = self._said = time.monotonic()

    @contextmanager
    def running(self, total: int | None) -> Iterator[None]:
        self._total = total
        self._began = self._said = time.monotonic()
        if self.quiet or not sys.stderr.isatty() or (total is not None and total < 2):
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        rate = TextColumn("{task.fields[rate]:.1f}/s")
        failures = TextColumn("{task.fields[failed]}")
        columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), failures)
        with Progress(*columns, console=Console(stderr=True), transient=True) as self._bar:
            self._task = self._bar.add_task("", total=total, rate=0.0, failed="")
            try:
                yield
            finally:
                self._bar, bar = None, self._bar
                bar.refresh()

    def advance(self) -> None:
        self._count += 1
        now = time.monotonic()
        if self._count == 1:
            self._began = now  # what came before was the model being loaded
        rate = (self._count - 1) / max(now - self._began, 1e-9)
        if self._bar is not None:
            failed = f"{self._failed} failed" if self._failed else ""
            self._bar.update(self._task, advance=1, rate=rate, failed=failed)
        elif self.lines and not self.quiet and self._count > 9 and now - self._said >= EVERY:
            self._said = now
            of = f" of {self._total}" if self._total is not None else ""
            left = f", {_span((self._total - self._count) / rate)} left" if self._total is not None else ""
            failed = f", {self._failed} failed" if self._failed else ""
            self._line(f"{self._count}{of} pictures, {rate:.1f}/s{left}{failed}")

    def bad(self, name: str, reason: str) -> None:
        self._failed += 1
        self._line(f"error: {name}: {reason.removeprefix(f'cannot read {name}: ')}")

    def note(self, text: str) -> None:
        if not self.quiet:
            self._line(f"note: {text}")

    def _line(self, text: str) -> None:
        text = " ".join(text.splitlines())
        if self._bar is not None:
            from rich.text import Text

            self._bar.console.print(Text(text), soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
