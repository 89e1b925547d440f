"""Training time and average losses between two reports."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor

from openblip.training.processes import ProcessGroupInfo


class Stopwatch:
    """Measures seconds of training; paused blocks do not count."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start measuring."""
        self.steps = 0
        self._start = self._lap_start = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the last lap, and start a new one."""
        now = time.monotonic()
        seconds, self._lap_start = now - self._lap_start, now
        return seconds

    def seconds_per_step(self) -> float:
        """Return the mean seconds per step, given the number of `steps`."""
        return (time.monotonic() - self._start) / max(self.steps, 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude a block from the measurement."""
        start = time.monotonic()
        try:
            yield
        finally:
            pause = time.monotonic() - start
            self._start += pause
            self._lap_start += pause


class LossState(TypedDict):
    """Sums of the losses that are not reported yet."""

    sums: dict[str, Tensor]
    steps: int


class LossMeter:
    """Sums of the losses since the last report, kept on the device so that no step waits for a value."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.num_images = 0

    def add(self, losses: Mapping[str, Tensor], total: Tensor, weight: float, num_images: int) -> None:
        """Add the losses of one batch, which makes up `weight` of a step."""
        for name, value in {"loss": total, **losses}.items():
            value = value.detach().float() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_images += num_images

    def mean(self, group: ProcessGroupInfo) -> dict[str, float]:
        """Return the mean losses per step over all processes."""
        values = group.mean(torch.stack(list(self.sums.values()))) / self.steps
        return dict(zip(self.sums, values.tolist(), strict=True))

    def reset(self) -> None:
        """Remove all losses."""
        self.sums, self.steps, self.num_images = {}, 0, 0

    def state(self) -> LossState:
        """Return the losses that are not reported yet."""
        return {"sums": dict(self.sums), "steps": self.steps}

    def load(self, state: LossState, device: torch.device) -> None:
        """Restore the result of `state`."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.steps = state["steps"]
