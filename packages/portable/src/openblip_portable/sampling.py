"""Sampling with the draws of openblip: the same seed gives the same text as `openblip.Blip`.

Shapes: I items, L items that still run, N samples per item, R = L * N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openblip_portable.errors import InputError
from openblip_portable.runtime import Array

if TYPE_CHECKING:
    from openblip_portable.decoding import Options


class Draws:
    """The random draws of one decoding run.

    With a seed, each item uses the same stream of random numbers, so that its samples do not depend on other items.

    Args:
        items: Number of items.
        options: Options of the run.
        seed: The seed; without one, draws are not repeatable.

    Raises:
        InputError: The seed is not an integer of at most 64 bits.
    """

    def __init__(self, items: int, options: Options, seed: int | None) -> None:
        shape = (options.n, options.max_new_tokens)
        if seed is None:
            self._uniform = np.random.default_rng().random((items, *shape))
        else:
            self._uniform = np.broadcast_to(draw_uniform(seed, shape), (items, *shape))

    def sample_tokens(self, scores: Array, step: int, items: NDArray[np.intp]) -> NDArray[np.intp]:
        """Draw one token per row.

        Args:
            scores: Logits (R, V); the rows of an item are adjacent.
            step: Number of new tokens so far.
            items: Indices (L,) of the items that the rows belong to.

        Returns:
            Token ids (R,).
        """
        cumulative = np.exp(log_softmax(scores)).astype(np.float64).cumsum(-1)
        targets = self._uniform[items, :, step].reshape(-1, 1) * cumulative[:, -1:]
        chosen = (cumulative <= targets).sum(-1)
        return np.minimum(chosen, scores.shape[1] - 1).astype(np.intp)


def draw_uniform(seed: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the numbers of `torch.rand(shape, dtype=torch.float64)` after `manual_seed(seed)`.

    Both libraries have the Mersenne Twister with the same seeding. PyTorch makes a number from the lowest 53 bits of
    two outputs.

    Args:
        seed: The seed.
        shape: Shape of the result.

    Returns:
        Numbers of at least 0 and below 1.

    Raises:
        InputError: The seed is not an integer of at most 64 bits.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
        raise InputError(f"seed must be an integer of at most 64 bits, got {seed!r}")
    count = int(np.prod(shape))
    generator = np.random.RandomState(seed % 2**32)
    words = generator.randint(0, 2**32, 2 * count, dtype=np.uint32).astype(np.uint64)
    bits = (words[::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)
    return (bits.astype(np.float64) * 2.0**-53).reshape(shape)


def filter_for_sampling(scores: Array, options: Options) -> Array:
    """Apply temperature, top-k and top-p to scores (R, V); excluded tokens get minus infinity, at least one remains."""
    if options.temperature != 1:
        scores = scores / np.float32(options.temperature)
    if options.top_k and options.top_k < scores.shape[1]:
        threshold = np.partition(scores, -options.top_k, -1)[:, -options.top_k, None]
        scores = np.where(scores < threshold, np.float32(-np.inf), scores)
    if options.top_p < 1:
        scores = np.where(scores < _nucleus_threshold(scores, options.top_p), np.float32(-np.inf), scores)
    return scores


def _nucleus_threshold(scores: Array, top_p: float) -> Array:
    """Return the lowest score (R, 1) among the likeliest tokens that together reach probability `top_p`."""
    best = -np.sort(-scores, -1)
    mass = np.exp(log_softmax(best)).cumsum(-1)
    inside = (mass[:, :-1] < top_p).sum(-1, keepdims=True)  # tokens whose better ones do not reach top_p yet
    return np.take_along_axis(best, inside, -1)


def log_softmax(scores: Array) -> Array:
    """Return the logarithm of the softmax over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
