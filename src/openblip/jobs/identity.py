"""The options of a job as its identity stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are set."""
    unset: tuple[Any, ...] = ([], (), "")
    return {name: v for name, v in options.items() if v is not None and v is not False and v not in unset}
