"""Random changes to training pictures, as the published models were trained (no torch here).

:class:`TrainTransform` is the whole way from a picture to the pixels of one training sample. Every draw comes from a
``random.Random`` that the caller hands in, so a sample is a function of picture and seed, whichever process makes it.

Pixels are uint8 arrays (H, W, 3), RGB.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from openblip.errors import ConfigError

if TYPE_CHECKING:
    from openblip.preprocess.settings import ImageSettings

Pixels: TypeAlias = NDArray[np.uint8]
Picture = TypeVar("Picture")

GREY = 128  # what shears, shifts and rotations leave uncovered


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, mirror, RandAugment: a picture to pixels (S, S, 3), not yet normalised.

    The crop takes ``min_scale`` to all of the picture's area (published: 0.5 for fine-tuning, 0.2 for pretraining) at
    an aspect between 3:4 and 4:3, and is resized to a square with PIL's bicubic filter. ``flip`` is the probability of
    the mirror, which the published code applies even where the text says "left" or "right".
    """

    settings: ImageSettings
    min_scale: float = 0.5
    flip: float = 0.5
    randaugment: RandAugment | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.min_scale <= 1.0:
            raise ConfigError(f"min_scale is a share of the picture's area, in (0, 1], not {self.min_scale}")
        if not 0.0 <= self.flip <= 1.0:
            raise ConfigError(f"flip is a probability, not {self.flip}")

    def __call__(self, image: Image.Image, rng: random.Random) -> Pixels:
        """One random view of ``image``."""
        size = (self.settings.size, self.settings.size)
        box = crop_box(image.width, image.height, self.min_scale, rng)
        # Cropped before it is resized: no pixel from outside the crop bleeds in at its edges.
        view = image.convert("RGB").crop(box).resize(size, Image.Resampling.BICUBIC)
        if rng.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels: Pixels = np.asarray(view)
        return pixels if self.randaugment is None else self.randaugment(pixels, rng)


def crop_box(
    width: int, height: int, min_scale: float, rng: random.Random, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """A random (left, top, right, bottom) of ``min_scale`` to all of the area, with a log-uniform aspect.

    Ten draws are tried, as in torchvision's RandomResizedCrop; then the largest centred crop of an allowed aspect.
    """
    for _ in range(10):
        area = width * height * rng.uniform(min_scale, 1.0)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def swap_pair(pair: tuple[Picture, Picture], sentence: str, rng: random.Random) -> tuple[tuple[Picture, Picture], str]:
    """NLVR2: half of the time exchange the two images, and with them the words "left" and "right" of the statement.

    After the paper's code, which splits a cleaned statement at single spaces and exchanges whole words, so that "left,"
    stays. It also does so in validation and test, which makes its evaluation random; use this in training only.
    """
    if rng.random() < 0.5:
        return pair, sentence
    return (pair[1], pair[0]), exchange_sides(sentence)


def exchange_sides(sentence: str) -> str:
    """A cleaned text with the words "left" and "right" exchanged."""
    other = {"left": "right", "right": "left"}
    return " ".join(other.get(word, word) for word in sentence.split(" "))


# --- RandAugment --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandAugment:
    """``count`` operations drawn with replacement, each then applied with probability 0.5, at one fixed ``level``.

    The ten operations and the strength are the published ones; at level 5 of 10, Brightness and Sharpness change
    nothing. The published arithmetic overflows in two places, and ``overflow`` (the default) keeps that, as it is what
    the authors trained with: AutoContrast paints a channel white unless its darkest pixel is 0, and Sharpness above
    level 5 wraps around beyond black and white. ``overflow=False`` does what the operations are named for.
    """

    count: int = 2
    level: float = 5.0
    operations: Sequence[str] = (
        "Identity", "AutoContrast", "Brightness", "Sharpness", "Equalize",
        "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
    )  # fmt: skip
    probability: float = 0.5
    overflow: bool = True

    def __post_init__(self) -> None:
        if unknown := set(self.operations) - {"Identity", *_COLOUR, *_WARPS}:
            raise ConfigError(f"unknown operations {sorted(unknown)}; known: {', '.join(RandAugment.operations)}")

    def __call__(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Pixels of the same size; the input is left as it is."""
        for operation in rng.choices(self.operations, k=self.count):
            if rng.random() > self.probability:
                continue
            strength = self.level / 10
            if operation in _COLOUR:
                pixels = _COLOUR[operation](pixels, strength * 1.8 + 0.1, self.overflow)
            elif operation in _WARPS:
                most, negative, inverse = _WARPS[operation]
                sign = -1 if negative(rng.random()) else 1
                pixels = warp(pixels, inverse(sign * strength * most, pixels.shape[1], pixels.shape[0]))
        return pixels


def warp(pixels: Pixels, inverse: Sequence[float]) -> Pixels:
    """Move pixels by an affine map, bilinearly, filling with grey.

    ``inverse`` (a, b, c, d, e, f) tells where the output pixel (x, y) comes from: (a x + b y + c, d x + e y + f).
    Computed in the fixed-point numbers of OpenCV 4 and equal to it bit for bit: positions in 1/32 of a pixel, reached
    through 1/1024, and mixtures rounded once.
    """
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = inverse
    x, y = np.arange(width), np.arange(height)

    def positions(along: float, down: float, start: float) -> NDArray[np.int64]:  # (H, W), in 1/32 pixel
        rows = np.rint((down * y + start) * 1024).astype(np.int64) + 16
        return (rows[:, None] + np.rint(along * x * 1024).astype(np.int64)) >> 5

    from_x, from_y = positions(a, b, c), positions(d, e, f)
    # One row and column of grey stand for all that is outside. The three channels travel in one 64-bit number, 21 bits
    # apart, as a weighted sum of four pixels (weights adding up to 1024) needs 18.
    packed = np.full((height + 2, width + 2), _pack(GREY, GREY, GREY))
    packed[1:-1, 1:-1] = _pack(*pixels.transpose(2, 0, 1).astype(np.uint64))
    left, top = from_x >> 5, from_y >> 5
    columns = np.clip(left, -1, width) + 1, np.clip(left + 1, -1, width) + 1
    rows = (np.clip(top, -1, height) + 1) * (width + 2), (np.clip(top + 1, -1, height) + 1) * (width + 2)
    across, down = (from_x & 31).astype(np.uint64), (from_y & 31).astype(np.uint64)

    def between(row: NDArray[np.int64]) -> NDArray[np.uint64]:
        return packed.take(row + columns[0]) * (32 - across) + packed.take(row + columns[1]) * across

    mixed = between(rows[0]) * (32 - down) + between(rows[1]) * down + _pack(512, 512, 512)
    return np.stack([(mixed >> np.uint64(lane + 10)).astype(np.uint8) for lane in (0, 21, 42)], axis=-1)


def _pack(red: Any, green: Any, blue: Any) -> Any:
    return np.uint64(1) * red | np.uint64(1 << 21) * green | np.uint64(1 << 42) * blue


def _auto_contrast(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    if not overflow:
        return np.asarray(ImageOps.autocontrast(Image.fromarray(pixels)))
    image = Image.fromarray(pixels)
    stretched = np.array(ImageOps.autocontrast(image))
    for channel, (low, high) in enumerate(cast("tuple[tuple[int, int], ...]", image.getextrema())):
        if 0 < low < high:  # minus the darkest value was taken in 8 bits: everything lands beyond white
            stretched[..., channel] = 255
    return stretched


def _equalize(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    return np.asarray(ImageOps.equalize(Image.fromarray(pixels)))


def _brightness(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    table: Pixels = (np.arange(256) * factor).clip(0, 255).astype(np.uint8)
    return table[pixels]


def _sharpness(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    if factor == 1.0:
        return pixels
    smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.SMOOTH)).astype(np.float32)
    sharp = smooth + np.float32(factor) * (pixels - smooth)
    if not overflow:
        sharp = sharp.clip(0, 255)
    return sharp.astype(np.int32).astype(np.uint8)


def _rotation(degrees: float, width: int, height: int) -> tuple[float, ...]:
    """Counter-clockwise about the middle (W / 2, H / 2), where pixel centres are whole numbers."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


_COLOUR: dict[str, Callable[[Pixels, float, bool], Pixels]] = {
    "AutoContrast": _auto_contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "Equalize": _equalize,
}

# The strength at level 10, whether a uniform draw means the negative direction, and the map to apply.
_Warp: TypeAlias = tuple[float, Callable[[float], bool], Callable[[float, int, int], Sequence[float]]]
_WARPS: dict[str, _Warp] = {
    "ShearX": (0.3, lambda draw: draw > 0.5, lambda v, w, h: (1, -v, 0, 0, 1, 0)),
    "ShearY": (0.3, lambda draw: draw > 0.5, lambda v, w, h: (1, 0, 0, -v, 1, 0)),
    "TranslateX": (10.0, lambda draw: draw > 0.5, lambda v, w, h: (1, 0, v, 0, 1, 0)),  # pixels, at any picture size
    "TranslateY": (10.0, lambda draw: draw > 0.5, lambda v, w, h: (1, 0, 0, 0, 1, v)),
    "Rotate": (30.0, lambda draw: draw < 0.5, _rotation),
}
