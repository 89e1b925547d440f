"""The teacher of a recipe, and the losses a student learns from it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openblip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Learning from a teacher. A weight of 0 leaves a loss out.

    Attributes:
        teacher: A BLIP model (a bundle, a name, a folder or a file), or an image network as `module:function`.
        features: Weight of the distance between image features, after a learned projection.
        feature_loss: Distance of features.
        itc: Weight of the divergence from the teacher's similarities of images and texts.
        itm: Weight of the divergence from the teacher's matching logits.
        lm: Weight of the divergence from the teacher's next-token logits.
        temperature: Temperature of `itm` and `lm`.
        views: Epochs after which the random views of an image recur; `None` never repeats them.
        cache: Folder for the teacher's features of recurring views, so that an epoch costs the student only; empty
            computes them each time.

    Raises:
        ConfigError: If there is no teacher, or a value is out of range.
    """

    teacher: str = ""
    features: float = 1.0
    feature_loss: Literal["cosine", "smooth_l1"] = "cosine"
    itc: float = 0.0
    itm: float = 0.0
    lm: float = 0.0
    temperature: float = 2.0
    views: int | None = None
    cache: str = ""

    def __post_init__(self) -> None:
        if not self.teacher:
            raise ConfigError("distill.teacher must name a model or module:function, got nothing")
        weights = (self.features, self.itc, self.itm, self.lm)
        if min(weights) < 0 or not any(weights):
            raise ConfigError(f"the weights of distill must be 0 or more, and one of them positive, got {weights}")
        if self.temperature <= 0:
            raise ConfigError(f"distill.temperature must be positive, got {self.temperature}")
        if self.views is not None and self.views < 1:
            raise ConfigError(f"distill.views must be at least 1, got {self.views}")
