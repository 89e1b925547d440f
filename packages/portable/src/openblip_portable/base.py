"""The base class of all tasks: encode images in batches, and return results in the shape of the input.

Shapes: I images, S side of an image, M image tokens, D width.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any, TypeVar, cast

import numpy as np

from openblip_portable.errors import InputError
from openblip_portable.folder import ExportFolder, StrPath
from openblip_portable.images import ImageInput, Pixels, normalize, open_image
from openblip_portable.runtime import Array, Floats

Item = TypeVar("Item")
Result = TypeVar("Result")


class Task:
    """One task of an exported folder.

    Args:
        folder: The folder, or an `ExportFolder` that several tasks share.
        threads: Number of compute threads; by default all processors. Ignored with an `ExportFolder`, which has its
            own.
        batch_size: Images per batch. Results do not depend on it.
        exact_decode: Whether to decode large JPEG files at their full size; see `open_image`.

    Raises:
        ExportError: The folder is incomplete, has another format version, or lacks the task.
        InputError: An option is out of range.
    """

    name: str

    def __init__(
        self,
        folder: StrPath | ExportFolder,
        *,
        threads: int | None = None,
        batch_size: int = 8,
        exact_decode: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.folder = folder if isinstance(folder, ExportFolder) else ExportFolder(folder, threads=threads)
        self.settings = self.folder.task(self.name)
        self.tokenizer = self.folder.tokenizer(self.name)
        self.exact_decode = exact_decode
        # onnxruntime's int8 quantizes all rows of a call with one scale, so a row would depend on its batch.
        is_coupled = self.folder.precision == "int8" and self.folder.runtime == "onnx"
        self.batch_size = 1 if is_coupled else batch_size
        self.text_rows = 1 if is_coupled else 64

    def run(self, role: str, *inputs: Array) -> list[Floats]:
        """Run a graph of the task.

        Args:
            role: Role of the graph.
            inputs: Its inputs.

        Returns:
            Its outputs.
        """
        return self.folder.graph(self.name, role)(inputs)

    def encode_images(self, pixels: Sequence[Pixels]) -> Floats:
        """Return the states (I, M, D) of images.

        Args:
            pixels: Images (S, S, 3).

        Returns:
            Image states.
        """
        image = normalize(pixels, self.settings["image"])
        if "stem" in self.settings["graphs"]:
            (image,) = self.run("stem", image)
        return self.run("image_encoder", image)[0]

    def open(self, image: ImageInput) -> tuple[Pixels, tuple[int, int]]:
        """Return the pixels (S, S, 3) of an image, and its width and height."""
        return open_image(image, self.settings["image"]["size"], exact_decode=self.exact_decode)

    def iter_batches(
        self, items: Iterable[Item], image_of: Callable[[Item], ImageInput]
    ) -> Iterator[tuple[list[Item], list[Pixels], list[tuple[int, int]]]]:
        """Yield batches of items with the pixels and the sizes of their images, which a thread prefetches.

        Args:
            items: The items.
            image_of: Returns the image of an item.

        Yields:
            Items, pixels, and sizes.
        """
        batch: list[tuple[Item, tuple[Pixels, tuple[int, int]]]] = []
        for item, opened in _open_ahead(items, lambda item: self.open(image_of(item)), 2 * self.batch_size):
            batch.append((item, opened))
            if len(batch) == self.batch_size:
                yield _split(batch)
                batch = []
        if batch:
            yield _split(batch)


def _split(
    batch: list[tuple[Item, tuple[Pixels, tuple[int, int]]]],
) -> tuple[list[Item], list[Pixels], list[tuple[int, int]]]:
    return [item for item, _ in batch], [opened[0] for _, opened in batch], [opened[1] for _, opened in batch]


def _open_ahead(
    items: Iterable[Item], function: Callable[[Item], Result], window: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with `function(item)`, computed ahead by a thread if there are several items."""
    source = iter(items)
    first = list(islice(source, 2))
    if len(first) < 2:
        for item in first:
            yield item, function(item)
        return
    with ThreadPoolExecutor(2) as pool:
        pending = deque((item, pool.submit(function, item)) for item in (*first, *islice(source, window)))
        try:
            while pending:
                item, future = pending.popleft()
                yield item, future.result()
                for next_item in islice(source, 1):
                    pending.append((next_item, pool.submit(function, next_item)))
        finally:
            for _, future in pending:
                future.cancel()


def is_single(images: Any) -> bool:
    """Return whether the input is one image."""
    return (
        isinstance(images, (str, bytes, bytearray, os.PathLike, np.ndarray))
        or hasattr(images, "read")
        or hasattr(images, "convert")
    )


def deliver(results: Iterator[Result], images: Any) -> Result | list[Result] | Iterator[Result]:
    """Return results in the shape of the input: one, a list, or an iterator.

    Args:
        results: The results.
        images: The input.

    Returns:
        One result for one image, an iterator for an iterator, and a list otherwise.
    """
    if is_single(images):
        return next(results)
    return results if isinstance(images, Iterator) else list(results)


def pair(images: Any, texts: str | Iterable[str | None] | None, noun: str) -> Iterable[tuple[ImageInput, str | None]]:
    """Return each image with its text: one text for all, or one per image.

    Args:
        images: One image, a list or an iterator.
        texts: One text (or `None`), or one per image.
        noun: The kind of text, for errors.

    Returns:
        Pairs.

    Raises:
        InputError: The numbers of images and texts differ.
    """
    listed = [images] if is_single(images) else images
    if texts is None or isinstance(texts, str):
        return zip(listed, repeat(texts), strict=False)
    texts = list(texts)
    if is_single(images):
        raise InputError(f"one image takes one {noun}, got {len(texts)}")
    if hasattr(listed, "__len__") and len(listed) != len(texts):
        raise InputError(f"{len(listed)} images need {len(listed)} {noun}s, got {len(texts)}")
    return zip(listed, texts, strict=True)


def group(images: Any, texts: Any, noun: str) -> tuple[Iterable[tuple[ImageInput, list[str]]], bool]:
    """Return each image with a list of its texts, and whether a result is a list.

    Args:
        images: One image with one text or several; or several images with one text for all, or one each.
        texts: The texts.
        noun: The kind of text, for errors.

    Returns:
        Pairs, and whether one image has several texts.
    """
    if not isinstance(texts, str) and is_single(images):
        return [(images, list(texts))], True
    return ((image, [cast(str, text)]) for image, text in pair(images, texts, noun)), False
