"""The random generators of Python, NumPy and PyTorch in this process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor


class RandomState(TypedDict):
    """State of all generators, as tensors and plain values."""

    python: list[Any]
    numpy: list[Any]
    torch: Tensor
    cuda: Tensor | None


def get_random_state(device: torch.device) -> RandomState:
    """Return the state of all generators as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: RandomState = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    return state


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Restore a state from `get_random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Restore the generators after a block, whatever the block draws."""
    state = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def seed_everything(seed: int) -> None:
    """Seed all generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
