"""Learning-rate schedules: the published ones, and one that changes at every step (no torch).

The rate depends only on the position in the run, so a resumed run needs no state of its schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openblip.errors import ConfigError

Kind = Literal["cosine", "step", "cosine_per_step", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over a run.

    The published schedules warm up in the first epoch only, and cut the warm-up if that epoch is shorter;
    `cosine_per_step` and `constant` always finish it.

    Attributes:
        kind: `cosine` (published for fine-tuning): half a cosine to `min_lr`, set once per epoch, so that the last
            epoch is still above `min_lr`. `step` (published for pretraining): times `decay_rate` at every epoch.
            `cosine_per_step`: half a cosine over all steps after the warm-up. `constant`: no change.
        lr: Highest learning rate.
        min_lr: Lowest learning rate after the warm-up.
        warmup_steps: Steps of a straight rise from `warmup_lr` to `lr`.
        warmup_lr: Learning rate of the first step of the warm-up.
        decay_rate: Factor per epoch of the `step` schedule.

    Raises:
        ConfigError: If a value is out of range.
    """

    kind: Kind = "cosine"
    lr: float = 1e-5
    min_lr: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    decay_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"lr must be positive and min_lr between 0 and lr, got {self.lr} and {self.min_lr}")
        if not 0 <= self.warmup_lr <= self.lr:
            raise ConfigError(f"warmup_lr must be between 0 and lr {self.lr}, got {self.warmup_lr}")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if not 0 < self.decay_rate <= 1:
            raise ConfigError(f"decay_rate must be in (0, 1], got {self.decay_rate}")

    def rate(self, *, epoch: int, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Return the learning rate of a step.

        Args:
            epoch: Epoch, counted from 0.
            step: Step in its epoch, counted from 0.
            steps_per_epoch: Steps in an epoch.
            epochs: Epochs in the run.
        """
        published = self.kind in ("cosine", "step")
        done = step if published else epoch * steps_per_epoch + step
        if done < self.warmup_steps and (epoch == 0 or not published):
            return min(self.lr, self.warmup_lr + (self.lr - self.warmup_lr) * done / self.warmup_steps)
        if self.kind == "constant":
            return self.lr
        if self.kind == "step":
            return max(self.min_lr, self.lr * self.decay_rate**epoch)
        if self.kind == "cosine":
            return self._cosine(epoch / epochs)
        cosine_steps = epochs * steps_per_epoch - 1 - self.warmup_steps
        return self._cosine((done - self.warmup_steps) / max(cosine_steps, 1))

    def _cosine(self, share: float) -> float:
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(share, 1.0)))
