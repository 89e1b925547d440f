"""What decoding needs from an engine, and nothing more: score bookkeeping sees logits and row numbers only.

A run decodes I items (images, or questions). An item owns ``width`` rows (beams, or samples), side by side, so there
are I * width rows; all of an item's rows read one memory, which is never copied.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Session(Protocol):
    """One decoding run; it owns the caches, so one model serves many runs at once. Starts with one row per item."""

    def step(self, ids: Tensor) -> Tensor:
        """Feed the next tokens (rows, t) of every row: float32 logits (rows, V) for the token after them."""
        ...

    def widen(self, width: int) -> None:
        """Give every item ``width`` rows in place of its one, each a continuation of it."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let row r continue what was row ``rows[r]`` (rows,), a row of the same item; rows may repeat."""
        ...

    def keep(self, items: Tensor) -> None:
        """Drop all items but these, given by ascending number; the remaining ones are renumbered from 0."""
        ...
