"""RandAugment as the published models were trained with, equal to OpenCV 4 bit for bit (no torch).

Pixels are uint8 arrays (H, W, 3), RGB.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from openblip.data.samples import Pixels
from openblip.errors import ConfigError

GRAY = 128  # fills the area that shears, shifts and rotations uncover


@dataclass(frozen=True)
class RandAugment:
    """`count` operations drawn with replacement, each then applied with `probability`, at one fixed `level`.

    Operations and strength are the published ones; at level 5 of 10, Brightness and Sharpness change nothing. The
    published arithmetic overflows in two cases: AutoContrast paints a channel white unless its darkest pixel is 0, and
    Sharpness above level 5 wraps around beyond black and white.

    Attributes:
        count: Operations drawn per image.
        level: Strength, from 0 to 10.
        operations: Names of the operations to draw from.
        probability: Probability to apply a drawn operation.
        overflow: Keep the overflows that the authors trained with; `False` does as the operations are named.
    """

    count: int = 2
    level: float = 5.0
    operations: Sequence[str] = (
        "Identity",
        "AutoContrast",
        "Brightness",
        "Sharpness",
        "Equalize",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
        "Rotate",
    )
    probability: float = 0.5
    overflow: bool = True

    def __post_init__(self) -> None:
        if unknown := set(self.operations) - {"Identity", *_COLOR, *_WARPS}:
            names = ", ".join(RandAugment.operations)
            raise ConfigError(f"operations must be among {names}, got {', '.join(sorted(unknown))}")

    def __call__(self, pixels: Pixels, rng: random.Random) -> Pixels:
        """Return changed pixels of the same size; the input is not modified."""
        for operation in rng.choices(self.operations, k=self.count):
            if rng.random() > self.probability:
                continue
            strength = self.level / 10
            if operation in _COLOR:
                pixels = _COLOR[operation](pixels, strength * 1.8 + 0.1, self.overflow)
            elif operation in _WARPS:
                limit, is_negative, inverse = _WARPS[operation]
                sign = -1 if is_negative(rng.random()) else 1
                pixels = warp(pixels, inverse(sign * strength * limit, pixels.shape[1], pixels.shape[0]))
        return pixels


def warp(pixels: Pixels, inverse: Sequence[float]) -> Pixels:
    """Move pixels by an affine map, with bilinear interpolation, and fill with gray.

    Equal to OpenCV 4 bit for bit: it computes in fixed point, with positions in 1/32 of a pixel reached through
    1/1024, and mixtures rounded once.

    Args:
        pixels: Bytes (H, W, 3).
        inverse: Six numbers (a, b, c, d, e, f); output pixel (x, y) comes from (a x + b y + c, d x + e y + f).

    Returns:
        Bytes (H, W, 3).
    """
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = inverse
    x, y = np.arange(width), np.arange(height)

    def positions(along: float, down: float, start: float) -> NDArray[np.int64]:  # (H, W), in 1/32 pixel
        rows = np.rint((down * y + start) * 1024).astype(np.int64) + 16
        return (rows[:, None] + np.rint(along * x * 1024).astype(np.int64)) >> 5

    from_x, from_y = positions(a, b, c), positions(d, e, f)
    # A border of gray stands for everything outside. The three channels share one 64-bit number, 21 bits apart: a
    # weighted sum of four pixels, with weights that add up to 1024, needs 18 bits.
    packed = np.full((height + 2, width + 2), _pack(GRAY, GRAY, GRAY))
    packed[1:-1, 1:-1] = _pack(*pixels.transpose(2, 0, 1).astype(np.uint64))
    x_low, y_low = from_x >> 5, from_y >> 5
    columns = np.clip(x_low, -1, width) + 1, np.clip(x_low + 1, -1, width) + 1
    rows = (np.clip(y_low, -1, height) + 1) * (width + 2), (np.clip(y_low + 1, -1, height) + 1) * (width + 2)
    x_share, y_share = (from_x & 31).astype(np.uint64), (from_y & 31).astype(np.uint64)

    def between(row: NDArray[np.int64]) -> NDArray[np.uint64]:
        return packed.take(row + columns[0]) * (32 - x_share) + packed.take(row + columns[1]) * x_share

    mixed = between(rows[0]) * (32 - y_share) + between(rows[1]) * y_share + _pack(512, 512, 512)
    return np.stack([(mixed >> np.uint64(lane + 10)).astype(np.uint8) for lane in (0, 21, 42)], axis=-1)


def _pack(red: Any, green: Any, blue: Any) -> Any:
    return np.uint64(1) * red | np.uint64(1 << 21) * green | np.uint64(1 << 42) * blue


def stretch_contrast(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    """Return pixels whose channels use the full range. `overflow` repeats an error of the published code."""
    if not overflow:
        return np.asarray(ImageOps.autocontrast(Image.fromarray(pixels)))
    image = Image.fromarray(pixels)
    stretched = np.array(ImageOps.autocontrast(image))
    for channel, (low, high) in enumerate(cast("tuple[tuple[int, int], ...]", image.getextrema())):
        if 0 < low < high:  # the published code subtracts the darkest value in 8 bits, which overflows to white
            stretched[..., channel] = 255
    return stretched


def adjust_brightness(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    """Return pixels (H, W, 3) times `factor`."""
    table: Pixels = (np.arange(256) * factor).clip(0, 255).astype(np.uint8)
    return table[pixels]


def adjust_sharpness(pixels: Pixels, factor: float, overflow: bool) -> Pixels:
    """Return pixels between a smoothed image (`factor` 0), the image (1) and beyond."""
    if factor == 1.0:
        return pixels
    smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.SMOOTH)).astype(np.float32)
    sharp = smooth + np.float32(factor) * (pixels - smooth)
    if not overflow:
        sharp = sharp.clip(0, 255)
    return sharp.astype(np.int32).astype(np.uint8)


def rotation_map(degrees: float, width: int, height: int) -> tuple[float, ...]:
    """Return the map that rotates counterclockwise about (W / 2, H / 2), with pixel centers at whole numbers."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


_COLOR: dict[str, Callable[[Pixels, float, bool], Pixels]] = {
    "AutoContrast": stretch_contrast,
    "Brightness": adjust_brightness,
    "Sharpness": adjust_sharpness,
    "Equalize": lambda pixels, factor, overflow: np.asarray(ImageOps.equalize(Image.fromarray(pixels))),
}

# The strength at level 10, whether a uniform draw means the negative direction, and the map to apply.
_Warp: TypeAlias = tuple[float, Callable[[float], bool], Callable[[float, int, int], Sequence[float]]]
_WARPS: dict[str, _Warp] = {
    "ShearX": (0.3, lambda draw: draw > 0.5, lambda v, w, h: (1, -v, 0, 0, 1, 0)),
    "ShearY": (0.3, lambda draw: draw > 0.5, lambda v, w, h: (1, 0, 0, -v, 1, 0)),
    "TranslateX": (10.0, lambda draw: draw > 0.5, lambda v, w, h: (1, 0, v, 0, 1, 0)),  # pixels, at any picture size
    "TranslateY": (10.0, lambda draw: draw > 0.5, lambda v, w, h: (1, 0, 0, 0, 1, v)),
    "Rotate": (30.0, lambda draw: draw < 0.5, rotation_map),
}
