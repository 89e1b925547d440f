"""Random draws: seeded ones depend on the item alone, unseeded ones come from torch's global generator.

Shapes: I items, N samples per item, R = I * N rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.options import Decoding


class Draws:
    """The draws of one run.

    Seeded: every item has the same stream of random numbers, made on the CPU, so that what an item gets depends
    neither on the other items nor on the device; its ``n`` samples use different numbers of that stream.
    Unseeded: ``torch.multinomial`` over all rows, which is what transformers does, so that one global seed gives one
    text in both.
    """

    def __init__(self, options: Decoding, seed: int | None) -> None:
        self.seeded = seed is not None
        if seed is not None:
            self._generator = torch.Generator().manual_seed(seed)
            shape = (options.n, options.max_new_tokens)
            self._uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def tokens(self, scores: Tensor, step: int) -> Tensor:
        """One token per row (R,), by the softmax of ``scores`` (R, V); the rows of an item lie side by side."""
        probs = scores.softmax(-1)
        if not self.seeded:
            return torch.multinomial(probs, 1).squeeze(1)
        cumulative = probs.to(precise(probs.device)).cumsum(-1)
        uniform = self._uniform[:, step].to(cumulative.device, cumulative.dtype)  # (N,)
        target = uniform.repeat(len(probs) // len(uniform))[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=probs.shape[1] - 1)

    def candidates(self, scores: Tensor, count: int) -> Tensor:
        """``count`` different columns per item (I, count), drawn by the softmax of ``scores`` (I, columns)."""
        probs = scores.softmax(-1)
        if not self.seeded:
            return torch.multinomial(probs, count)
        # The smallest of exponential waiting times with these rates: a draw without replacement.
        waiting = torch.empty(probs.shape[1]).exponential_(generator=self._generator)
        return (probs / waiting.to(probs.device)).topk(count).indices


def precise(device: torch.device) -> torch.dtype:
    """The widest floating type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
