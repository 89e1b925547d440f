"""Random draws. Seeded draws depend on the item alone; unseeded draws come from torch's global generator.

Shapes: I items, N samples per item, R = I * N rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.options import Decoding


class Draws:
    """The random draws of one decoding run.

    With a seed, each item uses the same stream of random numbers, drawn on the CPU, so the result of an item depends
    neither on the other items nor on the device. Its samples use different numbers of the stream.

    Without a seed, `torch.multinomial` draws for all rows at once, as in transformers, so that `torch.manual_seed`
    gives the same texts in both libraries.

    Args:
        options: Options of the run.
        seed: Seed, or `None` to use torch's global generator.
    """

    def __init__(self, options: Decoding, seed: int | None) -> None:
        self.seeded = seed is not None
        if seed is not None:
            self._generator = torch.Generator().manual_seed(seed)
            shape = (options.n, options.max_new_tokens)
            self._uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def sample_tokens(self, scores: Tensor, step: int) -> Tensor:
        """Draw one token per row.

        Args:
            scores: Logits (R, V); the rows of an item are adjacent.
            step: Number of new tokens so far.

        Returns:
            Token ids (R,).
        """
        probs = scores.softmax(-1)
        if not self.seeded:
            return torch.multinomial(probs, 1).squeeze(1)
        cumulative = probs.to(widest_float(probs.device)).cumsum(-1)
        uniform = self._uniform[:, step].to(cumulative.device, cumulative.dtype)  # (N,)
        target = uniform.repeat(len(probs) // len(uniform))[:, None] * cumulative[:, -1:]
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
