"""The interface of the stores: where an index keeps its images and embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from openblip.search.images import Batch, ImagePage, IndexedImage, Neighbors
from openblip.search.matrix import Rows
from openblip.search.settings import Filter, IndexSettings


class Store(ABC):
    """Images with embeddings and captions, searched by cosine, folder, date and caption.

    Any number of threads and processes may read. One process writes; its batches become visible one by one, each as a
    whole.

    Attributes:
        location: The folder or address of the store.
        settings: The settings of the index.
    """

    location: str
    settings: IndexSettings

    @abstractmethod
    def count(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def roots(self) -> dict[str, bool]:
        """Return the indexed folders, and whether folders below them are indexed."""

    @abstractmethod
    def find_paths(self, paths: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these paths, by path."""

    @abstractmethod
    def find_hashes(self, hashes: Sequence[str]) -> dict[str, list[IndexedImage]]:
        """Return the images with these hashes, by hash."""

    @abstractmethod
    def find_ids(self, ids: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these ids, by id."""

    @abstractmethod
    def iter_images(self, folder: str | None = None) -> Iterator[IndexedImage]:
        """Yield the images below a folder, or all images, in the order of their paths.

        Args:
            folder: An absolute path.
        """

    @abstractmethod
    def list_images(self, n: int, cursor: str | None, where: Filter) -> ImagePage:
        """Return one page of the images that pass a filter, the newest first."""

    @abstractmethod
    def embeddings(self, ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return the embeddings (E,) of images, by id."""

    @abstractmethod
    def iter_embeddings(self, size: int) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
        """Yield ids and embeddings of all images, `size` at a time."""

    @abstractmethod
    def states(self, ids: Sequence[str]) -> Mapping[str, Rows]:
        """Return the stored states (M, D) of images, by id."""

    @abstractmethod
    def find_nearest(self, query: NDArray[np.float32], n: int, where: Filter) -> Neighbors:
        """Return the `n` images with the highest cosine among those that pass a filter."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Return a context in which this process may write, and no other.

        Raises:
            SearchError: Another process is writing.
        """

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Apply changes as a whole, and return when they are on the disk."""

    @abstractmethod
    def set_roots(self, roots: Mapping[str, bool]) -> None:
        """Replace the indexed folders."""

    @abstractmethod
    def compact(self) -> int:
        """Free the space of removed images, and return the number of bytes freed."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections."""
