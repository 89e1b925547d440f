"""Checkpoints of a run that survive being killed at any moment, and the random states that belong to them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.io import atomic

_NAME = re.compile(r"step-(\d{9})\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one folder, named by their step. A file that is there is whole; ``keep`` of them stay."""

    folder: Path
    keep: int = 3

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Write the state of a run after ``step`` steps, then let the oldest go."""
        path = self.folder / f"step-{step:09d}.pt"
        with atomic.replace_path(path, sync=True) as temporary:
            torch.save(dict(state), temporary)
        for old in self.files()[: -self.keep]:
            old.unlink()
        return path

    def files(self) -> list[Path]:
        """Every checkpoint, the oldest first."""
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))

    def latest(self) -> Path | None:
        """The newest checkpoint, if there is any."""
        return files[-1] if (files := self.files()) else None

    def clear(self) -> None:
        """Remove what killed processes left half written. Only before a run starts to write."""
        for path in self.folder.glob(".openblip-*.part"):
            path.unlink()


def read_state(path: Path) -> dict[str, Any]:
    """What :meth:`Checkpoints.save` wrote; it may hold tensors and plain values only."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; remove it to resume from the one before") from error
    return state


def average(paths: Sequence[Path], prefix: str) -> dict[str, Tensor]:
    """The mean of the weights called ``prefix...`` in the "objective" of several checkpoints, without the prefix."""
    if not paths:
        raise CheckpointError("there is no checkpoint to average")
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_state(path)["objective"].items():
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                total[name] = total[name] + tensor.double() if name in total else tensor.double()
    first = read_state(paths[0])["objective"]
    return {name: (tensor / len(paths)).to(first[prefix + name].dtype) for name, tensor in total.items()}


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the generators of python, numpy and torch stand in this process."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back to where :func:`random_state` found them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside the block, the generators stand afterwards where they stood before."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def seed_everything(seed: int) -> None:
    """Seed the generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
