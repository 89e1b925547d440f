"""The interface between decoding and engines: score bookkeeping sees logits and row indices only.

A session decodes I items (images, or questions). Each item owns `width` adjacent rows (beams, or samples), so there
are I * width rows. The rows of an item share one cross-attention memory, which is never copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Session(Protocol):
    """One decoding run. It owns the caches, so one model serves many runs at once. It starts with one row per item."""

    def step(self, ids: Tensor) -> Tensor:
        """Append the next tokens (rows, t) to all rows; return float32 logits (rows, V) for the token after them."""
        ...

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]` (rows,) of the same item; rows may repeat."""
        ...

    def keep(self, items: Tensor) -> None:
        """Drop all items except these (ascending); the remaining items are renumbered from 0."""
        ...


# Makes the session of some items, given by index, in this order.
SessionFactory = Callable[[list[int]], Session]


class Monitor(Protocol):
    """Something that takes part in each step: other penalties, other ends of texts, records.

    With a monitor, all rows stay in the session until the end.
    """

    def process(self, logits: Tensor, scores: Tensor, history: Tensor) -> Tensor:
        """Return the scores (R, V) to choose tokens by: with penalties, bans and filters.

        Args:
            logits: Logits (R, V) of the model.
            scores: The logits or, with beams, log-probabilities (R, V).
            history: Tokens so far (R, L), prompt included.
        """
        ...

    def find_ends(self, sequences: Tensor) -> Tensor:
        """Return which texts (R, L) end with their last token, apart from [SEP]: booleans (R,)."""
        ...
