"""Random draws. Seeded draws depend on the item alone; unseeded draws come from torch's global generator.

Shapes: I items, N samples per item, R = I * N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.decoding.options import Decoding


class Draws:
    """The random draws of one decoding run.

    With a seed, each item uses the same stream of random numbers, drawn on the CPU, so the result of an item depends
    neither on the other items nor on the device. Its samples use different numbers of the stream. With a seed per item,
    each item has a stream of its own.

    Without a seed, `torch.multinomial` draws for all rows at once, as in transformers, so that `torch.manual_seed`
    gives the same texts in both libraries.

    Args:
        options: Options of the run.
        seed: Seed, one seed per item, or `None` to use torch's global generator.
    """

    def __init__(self, options: Decoding, seed: int | Sequence[int] | None) -> None:
        self.seeded = seed is not None
        self._per_item = not isinstance(seed, int)
        shape = (options.n, options.max_new_tokens)
        streams = []
        for number in (seed,) if isinstance(seed, int) else seed or ():
            self._generator = torch.Generator().manual_seed(number)
            streams.append(torch.rand(shape, generator=self._generator, dtype=torch.float64))
        if streams:
            self._uniform = torch.stack(streams)  # (1, N, steps), or (I, N, steps) with a seed per item

    def sample_tokens(self, scores: Tensor, step: int, items: Tensor | None = None) -> Tensor:
        """Draw one token per row.

        Args:
            scores: Logits (R, V); the rows of an item are adjacent.
            step: Number of new tokens so far.
            items: Indices (L,) of the items that the rows belong to; all items by default.

        Returns:
            Token ids (R,).
        """
        probs = scores.softmax(-1)
        if not self.seeded:
            return torch.multinomial(probs, 1).squeeze(1)
        cumulative = probs.to(widest_float(probs.device)).cumsum(-1)
        uniform = self._uniform[:, :, step]  # (1 or I, N)
        if self._per_item and items is not None:
            uniform = uniform[items.cpu()]
        uniform = uniform.expand(len(probs) // uniform.shape[1], -1).to(cumulative.device, cumulative.dtype)  # (L, N)
        target = uniform.reshape(-1, 1) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=probs.shape[1] - 1)

    def sample_candidates(self, scores: Tensor, count: int) -> Tensor:
        """Draw distinct columns per item.

        Args:
            scores: Logits (I, columns).
            count: Number of columns to draw.

        Returns:
            Column indices (I, count).
        """
        probs = scores.softmax(-1)
        if not self.seeded:
            return torch.multinomial(probs, count)
        # The columns with the shortest exponential waiting times are a draw without replacement.
        waiting_times = torch.empty(probs.shape[1]).exponential_(generator=self._generator)
        return (probs / waiting_times.to(probs.device)).topk(count).indices


def widest_float(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
