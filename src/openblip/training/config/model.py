"""The model of a recipe: sizes, and values that replace the values of the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openblip.checkpoints.sizes import override
from openblip.errors import ConfigError
from openblip.model.config import VISION_PRESETS, ModelConfig, ModelKind, TextConfig

LARGE_DEPTH = 24
LARGE_DROP_PATH = 0.1


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The sizes of the model.

    Attributes:
        size: Sizes of the start ("start"), or of a preset.
        image_size: Side of the images in pixels.
        drop_path: Stochastic depth; as published, 0.1 for ViT-L, VQA and NLVR2, and 0 otherwise, if `None`.
        vision: Further fields of the image encoder's configuration.
        text: Further fields of the text transformer's configuration.
        extra: Further fields of the model's configuration.
        freeze: Parts of the model that are not trained, such as `vision.stem`.
    """

    size: Literal["start", "base", "large"] = "start"
    image_size: int | None = None
    drop_path: float | None = None
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()

    def build_config(self, kind: ModelKind, drop_path: float, start: ModelConfig | None = None) -> ModelConfig:
        """Return the configuration of the model.

        Args:
            kind: Architecture of the model.
            drop_path: Published stochastic depth of the task.
            start: Configuration of the checkpoint that the run starts from; size "start" needs it.

        Raises:
            ConfigError: If `start` is missing, or a field is unknown or out of range.
        """
        if self.size != "start":
            vision = VISION_PRESETS[self.size]
            base = ModelConfig(task=kind, vision=vision, text=TextConfig(memory_width=vision.width))
        elif start is None:
            raise ConfigError("model.size must be base or large without a checkpoint to start from")
        else:
            base = dataclasses.replace(start, task=kind, decoder_memory_width=None)
        if self.drop_path is not None:
            drop_path = self.drop_path
        elif base.vision.depth >= LARGE_DEPTH:
            drop_path = LARGE_DROP_PATH
        overrides: dict[str, Any] = {**self.extra, "vision": {"drop_path": drop_path, **self.vision}, "text": self.text}
        if self.image_size is not None:
            overrides["image_size"] = self.image_size
        return override(base, overrides)
