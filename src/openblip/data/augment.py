"""Random changes to training images, as the published models were trained (no torch).

Every random draw comes from a `random.Random` that the caller passes in, so a sample depends only on the image and the
seed, not on the process that makes it. Pixels are uint8 arrays (H, W, 3), RGB.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageEnhance

from openblip.data.randaugment import RandAugment
from openblip.data.samples import Pixels
from openblip.errors import ConfigError
from openblip.preprocess.image import resize

if TYPE_CHECKING:
    from openblip.preprocess.settings import ImageSettings

Item = TypeVar("Item")
Transform: TypeAlias = Callable[[Image.Image, random.Random], Pixels]


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes to training images.

    Grounding takes only `jitter` and `mirror`: its crop keeps a part of every box.

    Attributes:
        min_scale: Smallest share of the image's area that a random crop keeps (published: 0.5 for fine-tuning, 0.2
            for pretraining).
        flip: Probability of a mirrored image.
        randaugment: Apply RandAugment.
        jitter: Strength of color jitter; only grounding was published with it (0.4).
        mirror: Probability that grounding mirrors an image and exchanges "left" and "right" in its expressions;
            published training does not.
    """

    min_scale: float = 0.5
    flip: float = 0.5
    randaugment: bool = True
    jitter: float = 0.0
    mirror: float = 0.0

    def color_jitter(self) -> ColorJitter | None:
        """Return the color jitter, or `None` if its strength is 0."""
        strength = self.jitter
        return ColorJitter(strength, strength, strength, strength / 4) if strength > 0 else None

    def transform(self, image: ImageSettings) -> Transform:
        """Return the random transform of a single image."""
        changes = RandAugment() if self.randaugment else None
        transform = TrainTransform(image, min_scale=self.min_scale, flip=self.flip, randaugment=changes)
        jitter = self.color_jitter()
        return transform if jitter is None else JitteredTransform(jitter, transform)


@dataclass(frozen=True)
class Resize:
    """The transform of evaluation: the complete image, resized to a square."""

    size: int = 384

    def __call__(self, image: Image.Image, rng: random.Random) -> Pixels:
        """Return pixels (S, S, 3), without any random draw."""
        return resize(image, self.size)


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, mirror and RandAugment.

    The crop has an aspect ratio between 3:4 and 4:3 and is resized to a square with PIL's bicubic filter. The
    published code mirrors images even where the text says "left" or "right".

    Attributes:
        settings: Size of the pixels.
        min_scale: Smallest share of the image's area that the crop keeps.
        flip: Probability of the mirror.
        randaugment: Further changes, or `None`.
    """

    settings: ImageSettings
    min_scale: float = 0.5
    flip: float = 0.5
    randaugment: RandAugment | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.min_scale <= 1.0:
            raise ConfigError(f"min_scale must be in (0, 1], got {self.min_scale}")
        if not 0.0 <= self.flip <= 1.0:
            raise ConfigError(f"flip must be between 0 and 1, got {self.flip}")

    def __call__(self, image: Image.Image, rng: random.Random) -> Pixels:
        """Return one random view (S, S, 3) of `image`."""
        size = (self.settings.size, self.settings.size)
        box = crop_box(image.width, image.height, self.min_scale, rng)
        # Crop before resizing: no pixel from outside the crop bleeds into its edges.
        view = image.convert("RGB").crop(box).resize(size, Image.Resampling.BICUBIC)
        if rng.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels: Pixels = np.asarray(view)
        return pixels if self.randaugment is None else self.randaugment(pixels, rng)


@dataclass(frozen=True)
class JitteredTransform:
    """Color jitter before another transform."""

    jitter: ColorJitter
    transform: Transform

    def __call__(self, image: Image.Image, rng: random.Random) -> Pixels:
        """Return pixels (S, S, 3)."""
        return self.transform(self.jitter(image, rng), rng)


@dataclass(frozen=True)
class ColorJitter:
    """Random changes of brightness, contrast, saturation and hue, in random order.

    Attributes:
        brightness: Strength; 0.4 draws the factor from 0.6 to 1.4.
        contrast: Strength, likewise.
        saturation: Strength, likewise.
        hue: Largest turn, as a share of the color circle.
        probability: Probability to change an image at all.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.5

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Return an image of the same size."""
        if rng.random() >= self.probability:
            return image
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        strengths = (self.brightness, self.contrast, self.saturation)
        for step in rng.sample(range(4), 4):
            if step == 3:
                turn = round(256 * rng.uniform(-self.hue, self.hue))
                hue, saturation, value = image.convert("HSV").split()
                hue = hue.point([(level + turn) % 256 for level in range(256)])
                image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            else:
                factor = rng.uniform(max(0.0, 1 - strengths[step]), 1 + strengths[step])
                image = enhancers[step](image).enhance(factor)
        return image


def crop_box(
    width: int, height: int, min_scale: float, rng: random.Random, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """Draw a crop with a log-uniform aspect ratio, as torchvision's RandomResizedCrop.

    Args:
        width: Width of the image.
        height: Height of the image.
        min_scale: Smallest share of the area; the largest is 1.
        rng: Source of the draws.
        ratio: Smallest and largest aspect ratio.

    Returns:
        Left, top, right and bottom. After ten draws that do not fit, the largest centered crop of an allowed ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1.0)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = rng.randint(0, width - w), rng.randint(0, height - h)
            return x, y, x + w, y + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def swap_pair(pair: tuple[Item, Item], statement: str, rng: random.Random) -> tuple[tuple[Item, Item], str]:
    """Exchange the two images of NLVR2 half of the time, and the words "left" and "right" of the statement with them.

    The paper's code also does so in validation and test, which makes its evaluation random; use this in training only.

    Args:
        pair: The left and the right image.
        statement: A cleaned statement.
        rng: Source of the draw.

    Returns:
        The pair and the statement, both exchanged or both unchanged.
    """
    if rng.random() < 0.5:
        return pair, statement
    return (pair[1], pair[0]), exchange_sides(statement)


def exchange_sides(text: str) -> str:
    """Exchange the words "left" and "right" in a cleaned text, splitting at single spaces as the paper's code does."""
    opposite = {"left": "right", "right": "left"}
    return " ".join(opposite.get(word, word) for word in text.split(" "))
