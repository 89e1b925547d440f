"""Images of an index, and a batch of changes to it (no torch)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.errors import InputError
from openblip.search.matrix import Rows

CaptionSource: TypeAlias = Literal["", "record", "sidecar", "metadata", "model"]

_CURSOR = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)/(\d{1,18})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class IndexedImage:
    """An image of an index.

    Attributes:
        id: Id of the image in the index: 16 random hexadecimal digits, which do not change when the file moves.
        path: Absolute path of the file.
        root: The indexed folder that contains the file.
        hash: SHA-256 of the file.
        stamp: Size and time of the file.
        date: Local date and time: when the photo was taken, otherwise when the file was changed.
        width: Width in pixels.
        height: Height in pixels.
        caption: The caption, if it has one.
        caption_source: Origin of the caption: a "record" of a list, a "sidecar" file, the "metadata" of the image, or
            the "model"; "" without a caption.
        caption_stamp: Text that changes when the file of the caption changes.
    """

    id: str
    path: str
    root: str
    hash: str
    stamp: str
    date: str
    width: int
    height: int
    caption: str | None = None
    caption_source: CaptionSource = ""
    caption_stamp: str = ""

    @property
    def name(self) -> str:
        """The path below the indexed folder, with "/" between folders."""
        return self.path[len(self.root) :].lstrip(os.sep).replace(os.sep, "/")


@dataclass(frozen=True)
class NewImage:
    """An image with its embedding. It replaces an image with the same id.

    Attributes:
        image: The image.
        embedding: Its embedding (E,).
        states: Its states (M, D), for an index that stores them; `None` to use the states of an equal file in the
            index.
    """

    image: IndexedImage
    embedding: NDArray[np.float32]
    states: Rows | None = None


@dataclass
class Batch:
    """Changes that become visible together.

    Attributes:
        new: Images with new embeddings.
        updated: Images with changed properties and the same embedding.
        removed: Ids of images to remove.
    """

    new: list[NewImage] = field(default_factory=list)
    updated: list[IndexedImage] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Return whether there is a change."""
        return bool(self.new or self.updated or self.removed)


@dataclass(frozen=True)
class Neighbors:
    """The images that are most similar to a query.

    Attributes:
        images: The images, best first.
        cosines: Their cosines with the query.
        embeddings: Their embeddings (N, E).
        searched: Number of images that passed the filter.
    """

    images: Sequence[IndexedImage]
    cosines: Sequence[float]
    embeddings: NDArray[np.float32]
    searched: int


@dataclass(frozen=True)
class ImagePage:
    """A page of a listing.

    Attributes:
        images: The images, the newest first.
        next: Cursor of the next page; `None` on the last page.
        total: Number of images on all pages.
    """

    images: Sequence[IndexedImage]
    next: str | None
    total: int


def parse_cursor(cursor: str) -> tuple[str, int]:
    """Return the date and the number of the image at a cursor.

    Args:
        cursor: `ImagePage.next`.

    Returns:
        The date and the number of the last image before the page.

    Raises:
        InputError: The cursor is malformed.
    """
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InputError(f"cursor must be the `next` of a page, got {cursor!r}")
    return match[1], int(match[2])
