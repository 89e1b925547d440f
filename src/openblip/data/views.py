"""A cache of stem features for fixed views of every image, so that an epoch costs the rest of the model only.

View 0 is the complete image, resized; view 1 is its mirror image. The other views are random crops with flips and color
jitter, drawn once for each image. Training reads one of the first `count` views each time.

The cache is a folder of memory-mapped arrays: `PART.json` lists the images of a part, and `PART.vK.npy` (I, C, G, G)
holds view K of them in half precision. Each part and view is a file of its own, so building resumes where it stopped.

Shapes: I images, S image size, C channels, G cells along a side.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from openblip.data.augment import ColorJitter, Transform, crop_box
from openblip.data.images import ImageRef, open_image
from openblip.data.samples import Box, Features, Pixels
from openblip.errors import InputError
from openblip.io import atomic
from openblip.preprocess.image import resize

Encode: TypeAlias = Callable[[Pixels], NDArray[np.floating]]

COMPLETE, MIRRORED = 0, 1
MIN_SHOWN = 0.6
"""Share of a box that a view must show."""

_MIN_SCALE = 0.4
_BATCH_SIZE = 8


@dataclass(frozen=True)
class Views:
    """Draws the views of images.

    Attributes:
        size: Side of a view in pixels.
        min_scale: Smallest share of an image's area that a crop keeps.
        jitter: Strength of color jitter.
    """

    size: int
    min_scale: float = _MIN_SCALE
    jitter: float = 0.3

    def __call__(self, image: Image.Image, number: int, key: str) -> Pixels:
        """Return the pixels (S, S, 3) of a view.

        Args:
            image: The image.
            number: The view.
            key: Name of the image in the cache, which seeds the random views.
        """
        if number > MIRRORED and self.jitter > 0:
            jitter = ColorJitter(self.jitter, self.jitter, self.jitter, self.jitter / 6)
            image = jitter(image, random.Random(f"{key}/{number}/color"))
        window, mirrored = draw_window(image.width, image.height, number, key, self.min_scale)
        view = image.crop(window)
        return resize(ImageOps.mirror(view) if mirrored else view, self.size)


def draw_window(
    width: int, height: int, number: int, key: str, min_scale: float = _MIN_SCALE
) -> tuple[tuple[int, int, int, int], bool]:
    """Return the window (left, top, right, bottom) that a view shows, and whether the view is mirrored."""
    if number in (COMPLETE, MIRRORED):
        return (0, 0, width, height), number == MIRRORED
    rng = random.Random(f"{key}/{number}")
    return crop_box(width, height, min_scale, rng), rng.random() < 0.5


def boxes_in_view(boxes: Sequence[Box], size: tuple[int, int], number: int, key: str) -> list[Box | None]:
    """Return boxes as shares of the sides of a view; `None` for a box of which it shows less than `MIN_SHOWN`.

    Args:
        boxes: Boxes in pixels of the image.
        size: Width and height of the image.
        number: The view.
        key: Name of the image in the cache.
    """
    (left, top, right, bottom), mirrored = draw_window(*size, number, key)
    width, height = right - left, bottom - top
    shares: list[Box | None] = []
    for box in boxes:
        x0, y0, x1, y1 = max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)
        area = max(x1 - x0, 0) * max(y1 - y0, 0)
        if area <= 0 or area < MIN_SHOWN * (box[2] - box[0]) * (box[3] - box[1]):
            shares.append(None)
            continue
        start, end = (x0 - left) / width, (x1 - left) / width
        if mirrored:
            start, end = 1 - end, 1 - start
        shares.append((start, (y0 - top) / height, end, (y1 - top) / height))
    return shares


def view_key(address: str) -> str:
    """Return the name of an image in a cache: its address from the last folder on, so that data may move as a whole.

    Examples:
        >>> view_key("/data/train/shard-000.tar:a.jpg")
        'train/shard-000.tar:a.jpg'
    """
    return "/".join(address.split("/")[-2:])


def build_part(
    folder: Path, part: str, images: Sequence[ImageRef], numbers: Sequence[int], views: Views, encode: Encode
) -> None:
    """Encode views of some images, except those that the cache already has.

    Args:
        folder: The cache.
        part: Name of this part, unique in the cache.
        images: The images.
        numbers: Numbers of the views.
        views: Draws the views.
        encode: Returns the features (B, C, G, G) of pixels (B, S, S, 3).
    """
    keys = [view_key(image.address) for image in images]
    for number in numbers:
        path = _path(folder, part, number)
        if path.exists():
            continue
        batches: list[Features] = []
        for start in range(0, len(images), _BATCH_SIZE):
            rows = range(start, min(start + _BATCH_SIZE, len(images)))
            pixels = np.stack([views(open_image(images[row]), number, keys[row]) for row in rows])
            batches.append(encode(pixels).astype(np.float16))
        with atomic.replace_file(path) as file:
            np.save(file, np.concatenate(batches))
    atomic.write_json(folder / f"{part}.json", keys)


@dataclass
class ViewCache:
    """The features of a cache, read by image and view.

    Attributes:
        folder: The cache.
        count: Views that training draws from; an image with fewer views gives those it has.

    Raises:
        InputError: If the cache is empty, or `count` is not positive.
    """

    folder: Path
    count: int = 1
    _rows: dict[str, tuple[str, int]] = field(default_factory=dict, init=False, repr=False)
    _arrays: dict[str, list[Features]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"view_count must be at least 1, got {self.count}")
        for listing in sorted(self.folder.glob("*.json")):
            for row, key in enumerate(json.loads(listing.read_text(encoding="utf-8"))):
                self._rows[key] = listing.stem, row
        if not self._rows:
            raise InputError(f"{self.folder} must be a cache of views, but holds none; build it first")

    def __reduce__(self) -> tuple[type[ViewCache], tuple[Path, int]]:
        return ViewCache, (self.folder, self.count)  # arrays stay mapped to the files

    def read(self, image: ImageRef, number: int) -> Features:
        """Return the features (C, G, G) of one view of an image.

        Raises:
            InputError: If the cache lacks the view.
        """
        arrays, row = self._locate(image)
        if number >= len(arrays):
            raise InputError(f"view {number} of {image.address} is not in the cache, which has {len(arrays)} of it")
        return arrays[number][row]

    def draw(self, image: ImageRef, rng: random.Random) -> tuple[Features, int]:
        """Return the features (C, G, G) of a random view of an image, and its number.

        Raises:
            InputError: If the cache lacks the image.
        """
        arrays, row = self._locate(image)
        number = rng.randrange(min(self.count, len(arrays)))
        return arrays[number][row], number

    def _locate(self, image: ImageRef) -> tuple[list[Features], int]:
        """Return the views of an image's part, from number 0 up to the first that is missing, and the image's row."""
        key = view_key(image.address)
        if key not in self._rows:
            raise InputError(f"{key} is not in the cache {self.folder}; build its views first")
        part, row = self._rows[key]
        if part not in self._arrays:
            self._arrays[part] = []
            while (path := _path(self.folder, part, len(self._arrays[part]))).exists():
                self._arrays[part].append(np.load(path, mmap_mode="r"))
        return self._arrays[part], row


def read_view(transform: Transform | ViewCache, image: ImageRef, rng: random.Random) -> Pixels | Features:
    """Return a view of an image: transformed now, or the cached features of a view that was drawn earlier."""
    if isinstance(transform, ViewCache):
        return transform.draw(image, rng)[0]
    return transform(open_image(image), rng)


def _path(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}.v{number}.npy"
