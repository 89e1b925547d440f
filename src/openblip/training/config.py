"""What a run of training is told: frozen dataclasses, read from a YAML recipe and ``key=value`` (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openblip.errors import ConfigError

Groups = Literal["published", "lavis"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """``groups="published"`` decays every trainable tensor, biases, norms, embeddings and temperature included, as the
    authors' code does; ``groups="lavis"`` spares tensors of fewer than two dimensions, as their later library does.
    ``clip_norm`` bounds the norm of all gradients together; no published training clips.
    """

    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    groups: Groups = "published"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.weight_decay < 0 or self.eps <= 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"AdamW cannot work with {self}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm must be positive, not {self.clip_norm}; leave it out for no clipping")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """``r`` is the rank of the corrections, ``alpha`` / ``r`` their scale (``alpha`` is twice the rank if left out).

    ``targets``: the linear layers that get one, by the last part of their names; both towers' attention by default.
    ``also``: what is trained whole, by patterns of parameter names; new heads belong here.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "key", "value", "qkv", "proj")
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"the rank r of LoRA is at least 1, not {self.r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}")

    @property
    def scale(self) -> float:
        """What the correction is multiplied by."""
        return (2.0 * self.r if self.alpha is None else self.alpha) / self.r


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run goes on, and what happens along the way.

    ``accumulate`` batches make a step. ``log_every`` counts steps; ``save_every`` too, besides the checkpoint after each
    epoch, and 0 means only that. ``evaluate_every`` counts epochs, ``evaluate_steps`` steps, 0 means never. A run whose
    ``metric`` is given keeps the best model, and stops after ``patience`` evaluations without a better one, if that is
    not 0.
    """

    epochs: int = 1
    seed: int = 42
    accumulate: int = 1
    precision: Precision = "fp32"
    log_every: int = 50
    save_every: int = 0
    keep: int = 3
    evaluate_every: int = 1
    evaluate_steps: int = 0
    metric: str = ""
    goal: Literal["max", "min"] = "max"
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("save_every", "evaluate_every", "evaluate_steps", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is a number from 0 up, not {getattr(self, name)}")
        if self.patience and not self.metric:
            raise ConfigError("stopping early (patience) needs the metric to go by")
