"""Padding in batches, handled so that results do not depend on the other rows of a batch.

A column that is padding in every row is part of the input, and is computed as `transformers` computes it. Other padding
exists only because another row of the batch is longer: each row is computed without it. A row's *columns* are its real
tokens and the common padding columns. Functions return `None` where all columns of all rows are used.

Shapes: B rows, T columns, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.compat.transformers_api.options import Rows, unpad
from openblip.errors import InputError


def select_columns(mask: Tensor | None) -> Tensor | None:
    """Return which columns (B, T) belong to each row.

    Args:
        mask: Attention mask (B, T).

    Returns:
        A boolean tensor (B, T); `None` without a mask or if every row uses all columns.

    Raises:
        InputError: The mask is not two-dimensional, or a row is only padding.
    """
    if mask is None:
        return None
    if mask.ndim != 2:
        raise InputError(f"attention mask must have shape (rows, columns), got {tuple(mask.shape)}")
    real = mask != 0
    columns = real | ~real.any(0)
    if torch.compiler.is_compiling():  # a graph cannot depend on values
        return columns
    if bool(columns.all()):
        return None
    if not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise InputError(f"every row must contain a token, but row {row} is only padding")
    return columns


def compute_positions(columns: Tensor | None) -> Tensor | None:
    """Return the position (B, T) of each token in its row, or `None` if it equals the column number.

    Args:
        columns: Result of `select_columns`.

    Returns:
        The position (B, T) of each token in its row, or `None` if it equals the column number.
    """
    if columns is None:
        return None
    positions = (columns.long().cumsum(1) - 1).clamp_(min=0)
    if torch.compiler.is_compiling():
        return positions
    numbers = torch.arange(columns.shape[1], device=columns.device)
    return None if bool(((positions == numbers) | ~columns).all()) else positions


def first_states(states: Tensor, columns: Tensor | None) -> Tensor:
    """Return the state (B, D) of each row's first token from `states` (B, T, D).

    Args:
        states: Hidden states.
        columns: Result of `select_columns`.

    Returns:
        The state (B, D) of each row's first token from `states` (B, T, D).
    """
    if columns is None:
        return states[:, 0]
    return states[torch.arange(len(states), device=states.device), columns.int().argmax(1)]


def unpad_rows(ids: Tensor, mask: Tensor | None) -> tuple[Rows, Rows]:
    """Return the ids and mask of each row without the padding that longer rows caused.

    Args:
        ids: Token ids (B, T).
        mask: Attention mask (B, T), all ones by default.

    Returns:
        The ids and mask of each row without the padding that longer rows caused.

    Raises:
        InputError: The mask has another shape, or a row is only padding.
    """
    return unpad(to_rows(ids), to_rows(torch.ones_like(ids) if mask is None else mask))


def to_rows(table: Tensor) -> Rows:
    """Return a table of token ids, or a mask, as lists of numbers.

    Args:
        table: Token ids or mask (B, T).

    Returns:
        The rows.

    Raises:
        InputError: The table is not two-dimensional.
    """
    if table.ndim != 2:
        raise InputError(f"input_ids and attention_mask must have shape (rows, columns), got {tuple(table.shape)}")
    rows: Rows = table.long().tolist()
    return rows
