"""Padding in batches, handled so that results do not depend on the other rows of a batch.

As in `openblip.compat.transformers_api.padding`: a column that is padding in every row is part of the input; other
padding exists only because another row of the batch is longer. A row's *columns* are its real tokens and the common
padding columns. Everything here can be traced, so no result depends on values that are not known yet.

Shapes: B rows, T columns, D width.
"""

from __future__ import annotations

import numpy as np

from openblip.errors import InputError
from openblip.keras.backend import Tensor, known_values, ops


def select_columns(mask: Tensor | None) -> Tensor | None:
    """Return which columns belong to each row.

    Args:
        mask: Attention mask (B, T).

    Returns:
        A boolean tensor (B, T), or `None` without a mask.

    Raises:
        InputError: The mask is not two-dimensional, or a row is only padding.
    """
    if mask is None:
        return None
    if len(mask.shape) != 2:
        raise InputError(f"attention mask must have shape (rows, columns), got {tuple(mask.shape)}")
    values = known_values(mask)
    if values is not None and values.any() and not values.any(1).all():
        row = int(np.flatnonzero(~values.any(1))[0])
        raise InputError(f"every row must contain a token, but row {row} is only padding")
    real = ops.not_equal(mask, 0)
    return ops.logical_or(real, ops.logical_not(ops.any(real, axis=0, keepdims=True)))


def compute_positions(columns: Tensor | None) -> Tensor | None:
    """Return the position of each token in its row, or `None` to count the columns.

    Args:
        columns: Result of `select_columns`.

    Returns:
        The position (B, T) of each token in its row, or `None` to count the columns.
    """
    if columns is None:
        return None
    numbers = ops.arange(ops.shape(columns)[1], dtype="int32")[None]
    positions = ops.maximum(ops.cumsum(ops.cast(columns, "int32"), axis=1) - 1, 0)
    is_column = ops.all(ops.logical_or(ops.equal(positions, numbers), ops.logical_not(columns)))
    return ops.where(is_column, ops.broadcast_to(numbers, ops.shape(positions)), positions)


def first_states(states: Tensor, columns: Tensor | None) -> Tensor:
    """Return the state of each row's first token.

    Args:
        states: Hidden states (B, T, D).
        columns: Result of `select_columns`.

    Returns:
        The state (B, D) of each row's first token.
    """
    if columns is None:
        return states[:, 0]
    first = ops.argmax(ops.cast(columns, "int32"), axis=1)
    return ops.take_along_axis(states, ops.cast(first, "int32")[:, None, None], axis=1)[:, 0]
