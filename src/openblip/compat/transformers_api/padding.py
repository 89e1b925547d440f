"""Which padding is whose: the caller's choice, or batch mates'.

A column that is padding in every row of a batch was the caller's choice, and is treated as ``transformers`` treats it.
Other padding belongs to batch mates: each row is computed as if it came without it. A row *keeps* its real tokens and
the common padding columns; where that makes no difference, these functions say ``None``.

Shapes: B rows, T columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.errors import InputError


def kept_columns(mask: Tensor | None) -> Tensor | None:
    """Which columns (B, T) each row keeps; ``None`` if every row keeps all, or there is no mask."""
    if mask is None:
        return None
    if mask.ndim != 2:
        raise InputError(f"a padding mask has rows and columns, not the shape {tuple(mask.shape)}")
    real = mask != 0
    kept = real | ~real.any(0)
    if bool(kept.all()):
        return None
    if not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise InputError(f"row {row} of the batch is nothing but padding")
    return kept


def positions(kept: Tensor | None) -> Tensor | None:
    """The position (B, T) of every token in its own row; ``None`` if that is its column."""
    if kept is None:
        return None
    places = (kept.long().cumsum(1) - 1).clamp_(min=0)
    columns = torch.arange(kept.shape[1], device=kept.device)
    return None if bool(((places == columns) | ~kept).all()) else places


def first_states(states: Tensor, kept: Tensor | None) -> Tensor:
    """The state (B, D) of each row's first token, of states (B, T, D)."""
    if kept is None:
        return states[:, 0]
    return states[torch.arange(len(states), device=states.device), kept.int().argmax(1)]


def rows_alone(ids: Tensor, mask: Tensor | None) -> tuple[list[list[int]], list[list[int]]]:
    """Each row's ids and mask as if it came alone: without the padding of batch mates."""
    if mask is None:
        mask = torch.ones_like(ids)
    kept = kept_columns(mask)
    if mask.shape != ids.shape:
        raise InputError(f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)} need as many columns and rows")
    mask = mask.long()
    if kept is None:
        return ids.tolist(), mask.tolist()
    alone = [(row_ids[row], row_mask[row]) for row_ids, row_mask, row in zip(ids, mask, kept, strict=True)]
    return [one.tolist() for one, _ in alone], [one.tolist() for _, one in alone]
