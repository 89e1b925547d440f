"""Random changes to pictures of which boxes are known, after mmpretrain's RefCOCO recipe (no torch).

There is no mirror here: expressions say "left" and "right", which :class:`openblip.data.tasks.GroundingTask` knows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from openblip.errors import ConfigError
from openblip.preprocess.image import resize

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed in random order, with a ``probability`` to change anything.

    A strength of 0.4 draws the factor from 0.6 to 1.4; ``hue`` is a share of the colour circle.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.5

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A picture of the same size."""
        if rng.random() >= self.probability:
            return image
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        strengths = (self.brightness, self.contrast, self.saturation)
        for step in rng.sample(range(4), 4):
            if step == 3:
                image = _turn_hue(image, rng.uniform(-self.hue, self.hue))
            else:
                factor = rng.uniform(max(0.0, 1 - strengths[step]), 1 + strengths[step])
                image = enhancers[step](image).enhance(factor)
        return image


@dataclass(frozen=True)
class GroundingTransform:
    """Colour jitter, a crop of 80 to 100 % of each side, and a smaller square set somewhere in a black one of ``size``.

    The crop keeps a part of every box, which is cut at its edge. The published sides of the smaller square are for a
    size of 384, and scale with it; its code fails at the first of them, which leaves no room to move.
    """

    size: int = 384
    jitter: ColorJitter | None = field(default_factory=ColorJitter)
    crop: float = 0.8
    sides: Sequence[int] = (384, 360, 344, 312, 300, 286, 270)
    of: int = 384

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop is a share of the picture's side, in (0, 1], not {self.crop}")
        if not self.sides or not all(0 < side <= self.of for side in self.sides):
            raise ConfigError(f"sides are between 1 and {self.of} pixels, not {list(self.sides)}")

    def __call__(self, image: Image.Image, boxes: Sequence[Box], rng: random.Random) -> tuple[Pixels, list[Box]]:
        """Pixels (S, S, 3), and the boxes in them."""
        if self.jitter is not None:
            image = self.jitter(image, rng)
        window = self._window(image, boxes, rng)
        side = max(1, round(rng.choice(self.sides) * self.size / self.of))
        left, top = rng.randint(0, self.size - side), rng.randint(0, self.size - side)
        pixels = np.zeros((self.size, self.size, 3), np.uint8)
        pixels[top : top + side, left : left + side] = resize(image.crop(window), side)
        across, down = side / (window[2] - window[0]), side / (window[3] - window[1])
        return pixels, [
            (
                (x0 - window[0]) * across + left,
                (y0 - window[1]) * down + top,
                (x1 - window[0]) * across + left,
                (y1 - window[1]) * down + top,
            )
            for x0, y0, x1, y1 in (_cut(box, window) for box in boxes)
        ]

    def _window(self, image: Image.Image, boxes: Sequence[Box], rng: random.Random) -> tuple[int, int, int, int]:
        for _ in range(10):
            width = max(1, round(image.width * rng.uniform(self.crop, 1)))
            height = max(1, round(image.height * rng.uniform(self.crop, 1)))
            left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
            window = (left, top, left + width, top + height)
            if all(x1 - x0 >= 1 and y1 - y0 >= 1 for x0, y0, x1, y1 in (_cut(box, window) for box in boxes)):
                return window
        return 0, 0, image.width, image.height


@dataclass(frozen=True)
class PlainBoxes:
    """The whole picture, resized to a square as for use, and its boxes."""

    size: int = 384

    def __call__(self, image: Image.Image, boxes: Sequence[Box], rng: random.Random) -> tuple[Pixels, list[Box]]:
        """Pixels (S, S, 3), and the boxes in them."""
        across, down = self.size / image.width, self.size / image.height
        window = (0, 0, image.width, image.height)
        cut = [_cut(box, window) for box in boxes]
        return resize(image, self.size), [(a * across, b * down, c * across, d * down) for a, b, c, d in cut]


def _cut(box: Box, window: tuple[int, int, int, int]) -> Box:
    """The part of a box inside a window; empty (right <= left) if there is none."""
    return max(box[0], window[0]), max(box[1], window[1]), min(box[2], window[2]), min(box[3], window[3])


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(step + round(share * 256)) % 256 for step in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
