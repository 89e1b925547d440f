"""Limits on the memory that decoding an image may take, and a budget that makes large images wait for each other.

The number of pixels says little: a baseline JPEG of 200 megapixels that is decoded at an eighth of its size needs
27 MB, a progressive one needs its coefficients as well, and a PNG with transparency needs 9 bytes per pixel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from openblip.heap import return_freed_memory

MAX_BYTES = 720 * 10**6
"""Memory that decoding may take, for one image and for all images that are decoded at the same time."""


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of one image. `None` is no limit.

    Attributes:
        max_bytes: Memory that decoding may take.
        max_pixels: Pixels of the file.
    """

    max_bytes: int | None = MAX_BYTES
    max_pixels: int | None = None


SERVER_LIMITS = DecodeLimits(max_bytes=256 * 10**6, max_pixels=64 * 10**6)
"""Limits for a server, which decodes the images of strangers."""

_default = DecodeLimits()


def default_limits() -> DecodeLimits:
    """Return the limits of images that are opened without other limits."""
    return _default


def set_default_limits(limits: DecodeLimits) -> None:
    """Change the limits of this process.

    Args:
        limits: The new limits.
    """
    global _default
    _default = limits


class ByteBudget:
    """Bytes that several threads share. A thread waits until its share is free; one that needs all waits to be alone.

    Args:
        total: Number of bytes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._local = threading.local()
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._used = 0
        self._freed = threading.Condition()
        self._entrance = threading.Lock()  # in the order of arrival, so that a large share is not passed over forever

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold `count` bytes during the block, or until the end of a block of `keep` around it."""
        count = min(count, self.total)
        kept: list[int] | None = getattr(self._local, "kept", None)
        if kept is not None and kept:  # this thread holds bytes already: waiting for more could wait for itself
            kept.append(0)
            yield
            return
        with self._entrance, self._freed:
            self._freed.wait_for(lambda: not self._used or self._used + count <= self.total)
            self._used += count
        if kept is not None:
            kept.append(count)
            yield
            return
        try:
            yield
        finally:
            self._free(count)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Hold the bytes of all blocks of `reserve` inside this block until its end."""
        if getattr(self._local, "kept", None) is not None:
            yield
            return
        self._local.kept = []
        try:
            yield
        finally:
            count, self._local.kept = sum(self._local.kept), None
            self._free(count)

    def _free(self, count: int) -> None:
        if count >= _TRIM_BYTES:
            return_freed_memory()
        with self._freed:
            self._used -= count
            self._freed.notify_all()


BUDGET = ByteBudget(MAX_BYTES)

_TRIM_BYTES = 32 * 10**6


# Bytes per pixel that decoders use in addition to the image itself. Measured with Pillow 12 and 13, except JXL and PSD:
# tests/preprocess/test_limits.py repeats the measurement.
_DECODER_BYTES = {"WEBP": 12, "AVIF": 8, "HEIF": 8, "JXL": 16, "GIF": 4, "QOI": 4, "PSD": 4}
_JPEG2000_BYTES = 5.5  # for each channel of each pixel
_READ_AT_ONCE = ("WEBP", "AVIF", "HEIF", "JPEG2000", "JXL", "TIFF")  # formats whose file is in memory as well
_WIDE_MODES = ("I", "F")


def estimate_bytes(image: Image.Image, size: tuple[int, int], *, turned: bool, file_size: int = 0) -> int:
    """Return about how much memory it takes to decode an image and to convert it to RGB.

    Args:
        image: The opened image, after `draft`.
        size: Width and height of the file.
        turned: Whether the image has to be rotated or mirrored.
        file_size: Number of bytes of the file.

    Returns:
        Number of bytes.
    """
    pixels = image.width * image.height
    mode, image_format = image.mode, image.format or ""
    per_pixel: float = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    if image_format == "JPEG2000":
        per_pixel += _JPEG2000_BYTES * len(image.getbands())
    per_pixel += _DECODER_BYTES.get(image_format, 0)
    if mode in _WIDE_MODES or mode.startswith("I;16"):
        per_pixel += 2
    if image.has_transparency_data and mode not in ("RGBA", *_WIDE_MODES):
        per_pixel += 4
    if mode != "RGB":
        per_pixel += 5 if image.has_transparency_data else 4
    if turned:
        per_pixel += 4
    in_memory = file_size if image_format in _READ_AT_ONCE else 0
    return int(pixels * per_pixel) + _coefficient_bytes(image, size) + in_memory


def _coefficient_bytes(image: Image.Image, size: tuple[int, int]) -> int:
    """Return the size of the coefficients that a progressive JPEG needs at once: two bytes for each sample."""
    if image.format not in ("JPEG", "MPO") or not image.info.get("progressive"):
        return 0
    layers = [(int(layer[1]), int(layer[2])) for layer in getattr(image, "layer", ())] or [(1, 1)] * 3
    widest, highest = max(h for h, _ in layers), max(v for _, v in layers)
    samples = sum(h * v / (widest * highest) for h, v in layers)
    return int(2 * samples * size[0] * size[1])
