"""Where a run stores results and reports progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

ProgressCallback: TypeAlias = Callable[[int, int], None]  # the number of items that are done, and of all items


def ignore_progress(done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Workspace:
    """Where a run stores results and reports progress.

    Attributes:
        folder: The folder of the results; `None` to store nothing.
        key: Model, preset and settings that the results depend on. A folder with another key is refused.
        progress: Called with the number of items that are done, and of all items.
    """

    folder: Path | None = None
    key: Mapping[str, Any] = field(default_factory=dict)
    progress: ProgressCallback = ignore_progress
