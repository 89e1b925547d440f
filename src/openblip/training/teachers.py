"""Teachers for distillation: a BLIP checkpoint, or an image network given as `module:function`.

Shapes: B images, S the teacher's image size, G cells along a side, W the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints import read
from openblip.checkpoints.folder import Bundle
from openblip.checkpoints.resolve import resolve
from openblip.checkpoints.stems import load_lite2
from openblip.errors import ConfigError
from openblip.io import atomic
from openblip.model.base import ImageTextModel
from openblip.model.config import ModelKind
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer


@dataclass
class Teacher:
    """A frozen network that a student learns from.

    Attributes:
        image: How the teacher's images are prepared.
        network: What maps pixels (B, 3, S, S) to features: BLIP tokens (B, 1 + G * G, W), class token first, or a grid
            (B, W, G, G), whose mean stands for the class token.
        width: W.
        model: The BLIP model whose texts a student may learn from too; `None` for an image network.
        tokenizer: The vocabulary of `model`.
    """

    image: ImageSettings
    network: nn.Module
    width: int
    model: ImageTextModel | None = None
    tokenizer: Tokenizer | None = None

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return class and patch features (B, 1 + G * G, W) of normalized pixels (B, 3, S, S)."""
        features = self.network(pixels)
        if features.ndim == 3:
            return cast(Tensor, features)
        patches = features.flatten(2).transpose(1, 2)  # (B, G * G, W)
        return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)

    def to(self, device: torch.device) -> Teacher:
        """Move the networks, in place."""
        self.network.to(device)
        if self.model is not None:
            self.model.to(device)
        return self


def load_teacher(name: str, task: ModelKind) -> Teacher:
    """Load a teacher by name.

    Args:
        name: A bundle, published name, hub id, folder or file of a BLIP model; or `module:function`, a function
            without arguments that returns an image network and its `ImageSettings`.
        task: The model task to take from a bundle.

    Raises:
        ConfigError: If a function returns another type or shape.
    """
    module, separator, function = name.partition(":")
    if separator and module.replace(".", "").replace("_", "").isalnum() and not Path(name).exists():
        return _load_network(name, module, function)
    loaded = read.load(resolve(name, task), task=task if Bundle.find(name) else None)
    model = cast(ImageTextModel, loaded.model.eval().requires_grad_(False))
    if not isinstance(model, ImageTextModel):
        raise ConfigError(
            f"a teacher must have an image encoder and a text transformer, got a {loaded.config.task} model"
        )
    return Teacher(loaded.image, model.vision, loaded.config.vision.width, model, loaded.tokenizer)


def efficientnet_lite2() -> tuple[nn.Module, ImageSettings]:
    """Return EfficientNet-Lite2 at 256 pixels, whose 8 x 8 cells are the patches of a student of 128 pixels."""
    return load_lite2(), ImageSettings(256, (127 / 255,) * 3, (128 / 255,) * 3)


def _load_network(name: str, module: str, function: str) -> Teacher:
    try:
        build = cast("Callable[[], Any]", getattr(import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the teacher {name} cannot be imported: {error}") from error
    result = build()
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module)):
        raise ConfigError(f"the teacher {name} must return a network and its ImageSettings, got {result!r}")
    network, image = result
    network = network.eval().requires_grad_(False)
    with torch.no_grad():
        shape = network(torch.zeros(1, 3, image.size, image.size)).shape
    if len(shape) not in (3, 4):
        raise ConfigError(f"the teacher {name} must return a grid (B, C, G, G) or tokens (B, N, C), got {tuple(shape)}")
    return Teacher(image, network, shape[1] if len(shape) == 4 else shape[2])


class FeatureStore:
    """Teacher features on disk, in half precision, under a digest of the pixels that they belong to.

    Worth its place where views recur (`distill.views`): then epochs cost the student only.
    """

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        self.folder, self.teacher = folder, teacher

    def features(self, pixels: Tensor) -> Tensor:
        """Return the teacher's features of pixels (B, 3, S, S), computed for those that are new."""
        paths = [self._path(image) for image in pixels]
        missing = [row for row, path in enumerate(paths) if not path.exists()]
        if missing:
            for row, features in zip(missing, self.teacher.features(pixels[missing]), strict=True):
                with atomic.replace_file(paths[row]) as file:
                    np.save(file, features.half().cpu().numpy())
        stored = np.stack([np.load(path) for path in paths])
        return torch.from_numpy(stored).float().to(pixels.device)

    def _path(self, image: Tensor) -> Path:
        name = blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.npy"


def resize_pixels(pixels: Tensor, source: ImageSettings, target: ImageSettings) -> Tensor:
    """Return pixels (B, 3, S, S), normalized and sized for another network."""
    if source == target:
        return pixels
    raw = pixels * pixels.new_tensor(source.std)[:, None, None] + pixels.new_tensor(source.mean)[:, None, None]
    if source.size != target.size:
        raw = F.interpolate(raw, (target.size, target.size), mode="bicubic", antialias=True).clamp(0, 1)
    return (raw - raw.new_tensor(target.mean)[:, None, None]) / raw.new_tensor(target.std)[:, None, None]
