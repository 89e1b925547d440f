"""The optimizer and the LoRA adapters of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from openblip.errors import ConfigError
from openblip.training.config import parsing


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """Options of AdamW.

    Attributes:
        weight_decay: Weight decay.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the denominator.
        groups: "published" decays every trainable tensor, as the authors' code does, including biases, norms,
            embeddings and temperature; "lavis" excludes tensors of fewer than two dimensions, as LAVIS does.
        clip_norm: Limit of the norm of all gradients together; `None` does not clip, as in all published training.

    Raises:
        ConfigError: If a value is out of range.
    """

    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    groups: Literal["published", "lavis"] = "published"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if self.eps <= 0:
            raise ConfigError(f"eps must be positive, got {self.eps}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm must be positive, got {self.clip_norm}; leave it out for no clipping")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Options of LoRA adapters.

    Attributes:
        r: Rank of the adapters.
        alpha: `alpha / r` scales the adapters; twice the rank if `None`.
        dropout: Dropout before the adapters.
        target_modules: Linear layers that get an adapter, by the last part of their names; by default the attention
            of both towers.
        modules_to_save: Modules that are trained in full, by patterns of their names. New heads belong here.

    Raises:
        ConfigError: If a value is out of range.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("query", "key", "value", "qkv", "proj")
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"r must be at least 1, got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")

    @classmethod
    def parse(cls, text: str) -> LoraSettings:
        """Parse options as the command line takes them.

        Args:
            text: `r=16,alpha=32,target_modules=query+value`; every option has a name.

        Returns:
            The options.

        Raises:
            ConfigError: If the text is malformed, or an option is unknown or out of range.
        """
        table: dict[str, Any] = {}
        for assignment in text.split(","):
            key, separator, value = assignment.partition("=")
            if not separator or not value:
                raise ConfigError(
                    f"--lora must look like r=16 or r=16,alpha=32,target_modules=query+value, got {text!r}"
                )
            key = key.strip()
            table[key] = value.split("+") if key in ("target_modules", "modules_to_save") else value
        return parsing.build(cls, table, "lora.")

    @property
    def effective_alpha(self) -> float:
        """`alpha`, or twice the rank."""
        return 2.0 * self.r if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """Factor of the adapters' output."""
        return self.effective_alpha / self.r
