"""Gathering of tensors from all processes that train together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scope = Literal["rank", "all"]


class Gather:
    """Gathers rows of a single process, that is, returns them unchanged; distributed training uses a subclass.

    `gather(rows)` returns the rows (B, ...) of every process in order of ranks, on each process. Gradients flow back:
    each process receives, for its own rows, the sum of the gradients of all processes' losses. Detach rows that need
    no gradient. Every process must call it equally often, in the same order, with rows of one shape (pad texts to one
    length); only B may differ.
    """

    rank: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes."""
        return rows

    def own_indices(self, rows: Tensor) -> Tensor:
        """Return the indices (B,) of this process's rows (B, ...) among the rows of all processes."""
        counts = self(torch.tensor([len(rows)], device=rows.device))
        return counts[: self.rank].sum() + torch.arange(len(rows), device=rows.device)


def mean_count(count: Tensor, gather: Gather) -> Tensor:
    """Return the mean of a scalar `count` over all processes, at least 1.

    Dividing a sum by it, instead of by `count`, gives a mean over all processes once gradients are averaged.
    """
    return gather(count[None]).float().mean().clamp(min=1.0)
