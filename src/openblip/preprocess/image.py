"""From anything that holds a picture to the tensor that BLIP was trained on.

Three steps, so that a caller can put them on different threads: ``load_image`` (decode, upright, RGB), ``resize`` (to the
model's square, bytes) and ``to_tensor`` (float32, normalised, wherever the batch lies). They equal the original's
evaluation transform: PIL bicubic to exactly S x S, aspect ratio not kept, then (x / 255 - mean) / std.

Shapes: B pictures, S side of the model's square in pixels, H and W those of the picture.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from openblip.errors import ConfigError, ImageError, InputError, OpenBlipError

if TYPE_CHECKING:
    from torch import Tensor

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any] | Tensor
    )
else:
    ImageSource: TypeAlias = Any

Pixels: TypeAlias = NDArray[np.uint8]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 178_956_970
"""Encoded pictures with more pixels are refused before they are decoded (half a gigabyte as RGB; Pillow's own limit)."""

_BICUBIC = Image.Resampling.BICUBIC
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class ImageSettings:
    """How a checkpoint wants its pictures: side of the square in pixels, mean and deviation of RGB on the 0..1 scale."""

    size: int = 384
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"image size {self.size} is not a number of pixels")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(x) for x in (*self.mean, *self.std)):
            raise ConfigError(f"mean {self.mean} and std {self.std} must be three finite numbers each, for R, G and B")
        if min(self.std) <= 0:
            raise ConfigError(f"std {self.std} must be positive")

    @classmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> ImageSettings:
        """From ``preprocessor_config.json``, or ``processor_config.json`` with its ``image_processor`` block."""
        raise NotImplementedError

    def to_processor_config(self) -> dict[str, Any]:
        """The ``preprocessor_config.json`` from which transformers builds the same processor."""
        raise NotImplementedError


def load_image(source: ImageSource) -> Image.Image:
    """The picture as upright RGB of its own size; ``ImageError`` if it cannot be read, ``InputError`` for a wrong type."""
    raise NotImplementedError


def resize(image: Image.Image, size: int) -> Pixels:
    """An RGB picture as (S, S, 3) bytes: bicubic with antialiasing, aspect ratio not kept, as BLIP was trained."""
    return np.array(image.resize((size, size), _BICUBIC))


def to_tensor(batch: Pixels | Tensor, settings: ImageSettings) -> Tensor:
    """Bytes (B, S, S, 3), an array or a tensor on any device, as normalised float32 (B, 3, S, S) on the same device."""
    raise NotImplementedError
