"""What an objective needs to know of the other processes that train with it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scope = Literal["rank", "all"]


class Gather:
    """One process alone: it gathers what it has.

    Distributed training puts a subclass in its place. ``gather(rows)`` gives the rows (B, ...) of every process, one
    after another in the order of ranks, on each of them. It passes gradients back: each process gets for its rows the
    sum of what all processes' losses say about them. What needs none is handed in detached. Every process calls it
    equally often and in the same order, with rows of one shape (texts padded to one length); only B may differ.
    """

    rank: int = 0

    def __call__(self, rows: Tensor) -> Tensor:
        """The rows of all processes."""
        return rows

    def places(self, rows: Tensor) -> Tensor:
        """Where among all processes' rows this process's own (B, ...) stand: (B,)."""
        counts = self(torch.tensor([len(rows)], device=rows.device))
        return counts[: self.rank].sum() + torch.arange(len(rows), device=rows.device)


def mean_count(count: Tensor, gather: Gather) -> Tensor:
    """The mean of ``count`` (a scalar) over all processes, at least 1.

    A sum divided by this instead of by ``count`` becomes a mean over everything once gradients are averaged over
    processes.
    """
    return gather(count[None]).float().mean().clamp(min=1.0)
