"""Random changes to images with boxes, after mmpretrain's RefCOCO recipe (no torch).

There is no mirror here, because expressions say "left" and "right": `GroundingData` mirrors image and text together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from PIL import Image

from openblip.data.augment import ColorJitter
from openblip.data.samples import Box, Pixels
from openblip.errors import ConfigError
from openblip.preprocess.image import resize

BoxTransform: TypeAlias = Callable[[Image.Image, Sequence[Box], random.Random], tuple[Pixels, list[Box]]]
Window: TypeAlias = tuple[int, int, int, int]

_PUBLISHED_SIZE = 384  # of the square in which the published sides are given


@dataclass(frozen=True)
class GroundingTransform:
    """Color jitter, a crop, and a smaller square at a random position in a black square.

    The crop keeps a part of every box, which is cut at the crop's edge. The published code fails at the first of its
    sides, which leaves no room to move the square.

    Attributes:
        size: Side of the result in pixels.
        jitter: Changes of color, or `None`.
        crop: Smallest share of each side of the image that the crop keeps.
        sides: Sides of the smaller square to draw from, for a size of 384; they scale with `size`.
    """

    size: int = _PUBLISHED_SIZE
    jitter: ColorJitter | None = field(default_factory=ColorJitter)
    crop: float = 0.8
    sides: Sequence[int] = (384, 360, 344, 312, 300, 286, 270)

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop must be in (0, 1], got {self.crop}")
        if not self.sides or not all(0 < side <= _PUBLISHED_SIZE for side in self.sides):
            raise ConfigError(f"sides must be between 1 and {_PUBLISHED_SIZE} pixels, got {list(self.sides)}")

    def __call__(self, image: Image.Image, boxes: Sequence[Box], rng: random.Random) -> tuple[Pixels, list[Box]]:
        """Return pixels (S, S, 3) and the boxes in them."""
        if self.jitter is not None:
            image = self.jitter(image, rng)
        window = self._draw_window(image, boxes, rng)
        side = max(1, round(rng.choice(self.sides) * self.size / _PUBLISHED_SIZE))
        x, y = rng.randint(0, self.size - side), rng.randint(0, self.size - side)
        pixels = np.zeros((self.size, self.size, 3), np.uint8)
        pixels[y : y + side, x : x + side] = resize(image.crop(window), side)
        x_scale, y_scale = side / (window[2] - window[0]), side / (window[3] - window[1])
        moved: list[Box] = []
        for box in boxes:
            x0, y0, x1, y1 = _clip(box, window)
            moved.append(
                (
                    (x0 - window[0]) * x_scale + x,
                    (y0 - window[1]) * y_scale + y,
                    (x1 - window[0]) * x_scale + x,
                    (y1 - window[1]) * y_scale + y,
                )
            )
        return pixels, moved

    def _draw_window(self, image: Image.Image, boxes: Sequence[Box], rng: random.Random) -> Window:
        """Draw a crop that keeps at least a pixel of every box; the complete image after ten draws."""
        for _ in range(10):
            width = max(1, round(image.width * rng.uniform(self.crop, 1)))
            height = max(1, round(image.height * rng.uniform(self.crop, 1)))
            x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
            window = (x, y, x + width, y + height)
            if all(x1 - x0 >= 1 and y1 - y0 >= 1 for x0, y0, x1, y1 in (_clip(box, window) for box in boxes)):
                return window
        return 0, 0, image.width, image.height


@dataclass(frozen=True)
class ResizeWithBoxes:
    """The transform of evaluation: the complete image, resized to a square, and its boxes."""

    size: int = _PUBLISHED_SIZE

    def __call__(self, image: Image.Image, boxes: Sequence[Box], rng: random.Random) -> tuple[Pixels, list[Box]]:
        """Return pixels (S, S, 3) and the boxes in them, without any random draw."""
        x_scale, y_scale = self.size / image.width, self.size / image.height
        window = (0, 0, image.width, image.height)
        clipped = [_clip(box, window) for box in boxes]
        scaled = [(x0 * x_scale, y0 * y_scale, x1 * x_scale, y1 * y_scale) for x0, y0, x1, y1 in clipped]
        return resize(image, self.size), scaled


def _clip(box: Box, window: Window) -> Box:
    """Return the part of a box inside a window; empty (right <= left) if there is none."""
    return max(box[0], window[0]), max(box[1], window[1]), min(box[2], window[2]), min(box[3], window[3])
