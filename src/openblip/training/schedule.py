"""Learning rates: the published schedules, and one that moves at every step (no torch here).

A rate is a function of the position alone, so a resumed run needs no state to continue it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openblip.errors import ConfigError

Kind = Literal["cosine", "step", "cosine_per_step", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves from ``lr`` on.

    - ``cosine`` (published for fine-tuning): half a cosine to ``min_lr``, set once per epoch, so that it is constant
      within one and the last epoch still lies above ``min_lr``.
    - ``step`` (published for pretraining): times ``decay_rate`` at every epoch, never below ``min_lr``.
    - ``cosine_per_step``: the same half cosine over all steps after the warm-up, reaching ``min_lr`` at the last one.
    - ``constant``.

    The warm-up is a straight line from ``warmup_lr`` over ``warmup_steps``. In the published schedules it exists in the
    first epoch only: where that epoch is shorter, it is cut. ``cosine_per_step`` and ``constant`` always finish it.
    """

    kind: Kind = "cosine"
    lr: float = 1e-5
    min_lr: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    decay_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"min_lr {self.min_lr} must lie between 0 and lr {self.lr}, which must be positive")
        if not 0 <= self.warmup_lr <= self.lr:
            raise ConfigError(f"warmup_lr {self.warmup_lr} must lie between 0 and lr {self.lr}")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps is a number of steps, not {self.warmup_steps}")
        if not 0 < self.decay_rate <= 1:
            raise ConfigError(f"decay_rate is the factor per epoch, in (0, 1], not {self.decay_rate}")

    def rate(self, *, epoch: int, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate of a step, counted from 0 within its epoch, which is counted from 0 too."""
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
        last = epochs * steps_per_epoch - 1 - self.warmup_steps
        return self._cosine((done - self.warmup_steps) / max(last, 1))

    def _cosine(self, share: float) -> float:
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(share, 1.0)))
