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

    Any number of threads and processes can read while one process writes. Each batch becomes visible atomically.

    Attributes:
        location: The folder or address of the store.
        settings: The settings of the index.
    """

    location: str
    settings: IndexSettings

    @abstractmethod
    def count(self) -> int:
        """Return the number of images.

        Returns:
            The number.
        """

    @abstractmethod
    def roots(self) -> dict[str, bool]:
        """Return the indexed folders.

        Returns:
            Absolute paths, and whether their subfolders are indexed.
        """

    @abstractmethod
    def find_paths(self, paths: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these paths.

        Args:
            paths: Absolute paths.

        Returns:
            The images by path.
        """

    @abstractmethod
    def find_hashes(self, hashes: Sequence[str]) -> dict[str, list[IndexedImage]]:
        """Return the images with this content.

        Args:
            hashes: SHA-256 of files.

        Returns:
            The images by hash.
        """

    @abstractmethod
    def find_ids(self, ids: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these ids.

        Args:
            ids: The ids.

        Returns:
            The images by id; ids that the index does not have are left out.
        """

    @abstractmethod
    def iter_images(self, folder: str | None = None) -> Iterator[IndexedImage]:
        """Yield the images below a folder, or all images, in the order of their paths.

        Args:
            folder: An absolute path.

        Yields:
            The images.
        """

    @abstractmethod
    def list_images(self, n: int, cursor: str | None, where: Filter) -> ImagePage:
        """Return one page of the images that pass a filter, the newest first.

        Args:
            n: Maximum number of images on the page.
            cursor: `next` of the previous page; `None` for the first page.
            where: The filter.

        Returns:
            The page.
        """

    @abstractmethod
    def embeddings(self, ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return the embeddings of images.

        Args:
            ids: The ids.

        Returns:
            Embeddings (E,) by id.
        """

    @abstractmethod
    def iter_embeddings(self, size: int) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
        """Yield the embeddings of all images.

        Args:
            size: Maximum number of images to yield at once.

        Yields:
            Ids of N images and their embeddings (N, E).
        """

    @abstractmethod
    def states(self, ids: Sequence[str]) -> Mapping[str, Rows]:
        """Return the stored states of images.

        Args:
            ids: The ids.

        Returns:
            States (M, D) by id; images without stored states are left out.
        """

    @abstractmethod
    def find_nearest(self, query: NDArray[np.float32], n: int, where: Filter) -> Neighbors:
        """Return the images with the highest cosine among those that pass a filter.

        Args:
            query: The query (E,).
            n: Maximum number of images to return.
            where: The filter.

        Returns:
            The images, best first.

        Raises:
            InputError: The query is zero or has the wrong width.
        """

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Return a context manager that gives this process exclusive write access.

        Returns:
            The context manager.

        Raises:
            SearchError: Another process is writing.
        """

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Apply changes atomically, and return when they are on disk.

        Args:
            batch: The changes.

        Raises:
            SearchError: The changes cannot be written.
        """

    @abstractmethod
    def set_roots(self, roots: Mapping[str, bool]) -> None:
        """Replace the indexed folders.

        Args:
            roots: Absolute paths, and whether their subfolders are indexed.
        """

    @abstractmethod
    def compact(self) -> int:
        """Free the space of removed images.

        Returns:
            The number of bytes freed.
        """

    @abstractmethod
    def close(self) -> None:
        """Close files and connections."""
