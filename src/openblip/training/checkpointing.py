"""Checkpoints of a run that survive a kill at any moment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.io import atomic

_NAME = re.compile(r"step-(\d{9})\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one folder, named by step. Every file is complete.

    Attributes:
        folder: The folder.
        keep: Number of checkpoints to keep.
    """

    folder: Path
    keep: int = 3

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Write the state of a run, then remove the oldest checkpoints.

        Args:
            state: Tensors and plain values.
            step: Number of steps done.

        Returns:
            The new file.
        """
        path = self.folder / f"step-{step:09d}.pt"
        with atomic.replace_file(path, sync=True) as file:
            torch.save(dict(state), file)
        for oldest in self.files()[: -self.keep]:
            oldest.unlink()
        return path

    def files(self) -> list[Path]:
        """Return every checkpoint, the oldest first."""
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))

    def latest(self) -> Path | None:
        """Return the newest checkpoint, if there is any."""
        return files[-1] if (files := self.files()) else None

    def remove_partial(self) -> None:
        """Remove the files that killed processes left half written. Call it only before a run writes."""
        for path in self.folder.glob(".openblip-*.part"):
            path.unlink()


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: A file that `Checkpoints.save` wrote.

    Returns:
        Tensors and plain values.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; remove it to resume from the previous one") from error
    return state


def average_weights(paths: Sequence[Path], prefix: str) -> dict[str, Tensor]:
    """Average the weights of several checkpoints.

    Args:
        paths: The checkpoints.
        prefix: Start of the names to average.

    Returns:
        The mean of each weight, by its name without the prefix.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    if not paths:
        raise CheckpointError("at least one checkpoint is needed to average, got none")
    sums: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_state(path)["objective"].items():
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    dtypes = {name: tensor.dtype for name, tensor in read_state(paths[0])["objective"].items()}
    return {name: (tensor / len(paths)).to(dtypes[prefix + name]) for name, tensor in sums.items()}
