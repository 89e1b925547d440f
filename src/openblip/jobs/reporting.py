"""Progress of a job on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from openblip.io import jsonlines, progress

SECONDS_PER_LINE = 10.0
SECONDS_PER_OBJECT = 1.0

# Kinds of failures, by words of their reasons. The first one that fits counts.
_FAILURES = {
    "sharing their output with another image": ("would both be written",),
    "not writable": ("cannot write",),
    "without permission to read": ("ermission denied",),
    "missing": ("no such file", "matches no file", "has no such member"),
    "empty": ("it is empty",),
    "too large": ("too large", "more memory", "not enough memory", "is larger than"),
    "needing an extra": ("needs an extra", "pip install"),
    "damaged": ("damaged", "truncated", "zero bytes", "cannot read the XMP"),
    "in a format that is not supported": ("is not supported", "RAW photo", "not in an image format", "must be a JPEG"),
    "not an image": ("it is ", "not a regular file"),
    "not fetched": ("cannot fetch",),
    "without an image": ("no image", "has no images", "expected one image"),
    "with unusable texts or records": ("must be", "JSON", "UTF-8", "sidecar", "no text", "the row"),
}


def failure_kind(reason: str) -> str:
    """Return the kind of a failure, for the summary of a job: "damaged", "too large".

    Args:
        reason: The error.
    """
    for kind, words in _FAILURES.items():
        if any(word in reason for word in words):
            return kind
    return "for another reason"


class JobProgress:
    """Images per second, remaining time and failures of a job.

    Args:
        bar: The bar to update.
        total: Number of items, if it is known.
        lines: Print a line from time to time where no bar is visible.
        json: Print JSON objects instead, at most one per second, and one for the last item.
    """

    def __init__(self, bar: progress.Bar, total: int | None, *, lines: bool, json: bool = False) -> None:
        self._bar = bar
        self._json = json
        self._total = total
        self._lines = lines
        self._done = self._failed = 0
        self._start = self._last_line = time.monotonic()

    def advance(self, *, failed: bool = False) -> None:
        """Count one item."""
        now = time.monotonic()
        self._done += 1
        self._failed += failed
        if self._done == 1:
            self._start = now  # the time before was spent on loading the model
        rate = (self._done - 1) / max(now - self._start, 1e-9)
        if self._json:
            if now - self._last_line >= SECONDS_PER_OBJECT or self._done == self._total:
                self._last_line = now
                self.print(self._to_json(now, rate))
            return
        failures = f", {self._failed} failed" if self._failed else ""
        self._bar.advance(status=f"{rate:.1f}/s{failures}")
        if self._lines and not self._bar.visible and self._done > 9 and now - self._last_line >= SECONDS_PER_LINE:
            self._last_line = now
            of_total = remaining = ""
            if self._total is not None:
                of_total = f" of {self._total}"
                remaining = f", {format_duration((self._total - self._done) / rate)} left"
            self.print(f"{self._done}{of_total} images, {rate:.1f}/s{remaining}{failures}")

    def _to_json(self, now: float, rate: float) -> str:
        left = None if self._total is None or not rate else round((self._total - self._done) / rate, 1)
        return jsonlines.dumps(
            {
                "done": self._done,
                "total": self._total,
                "failed": self._failed,
                "images_per_second": round(rate, 3),
                "seconds_left": left,
            }
        )

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.print(text)


@contextmanager
def report_progress(total: int | None, *, lines: bool, form: str = "auto") -> Iterator[JobProgress]:
    """Show the progress of a job while the block runs.

    Args:
        total: Number of items, if it is known.
        lines: Print a line from time to time where there is no terminal.
        form: "json" prints JSON objects instead of a bar or lines.
    """
    json = form == "json"
    with progress.bar(total=total, visible=False if json else None) as bar:
        yield JobProgress(bar, total, lines=lines, json=json)


def format_duration(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
