"""A file of rows of numbers: appended and flushed by one writer, memory-mapped by any number of readers.

The file has no header, and its committed length is recorded elsewhere, after the rows are on the disk. Rows behind that
length are the remains of a writer that was killed: no reader maps them, and the next writer replaces them.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.errors import SearchError

Rows: TypeAlias = "NDArray[np.floating[Any]]"

TYPES: dict[str, np.dtype[np.floating[Any]]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
_COPY_BYTES = 1 << 24


class MatrixFile:
    """Rows of one shape in a file.

    Args:
        path: The file. It is created by the first `write`.
        shape: Shape of a row.
        dtype: "fp32" or "fp16", little-endian.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path = path
        self.shape = shape
        self.dtype = TYPES[dtype]
        self.row_bytes = prod(shape) * self.dtype.itemsize

    def write(self, start: int, rows: Rows) -> None:
        """Write rows behind the committed ones, and return when they are on the disk.

        Args:
            start: Number of committed rows. Whatever the file has behind them is replaced.
            rows: The rows.

        Raises:
            SearchError: The file is shorter than `start` rows, or the rows cannot be written.
        """
        content = np.ascontiguousarray(rows, self.dtype)
        is_new = not self.path.exists()
        try:
            with self.path.open("wb" if is_new else "r+b") as file:
                if os.fstat(file.fileno()).st_size < start * self.row_bytes:
                    raise self._too_short(start)
                file.seek(start * self.row_bytes)
                file.write(content.data)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise SearchError(
                f"cannot write {self.path}: {error.strerror or error}; run the same command again to resume"
            ) from error

    def map(self, count: int) -> Rows:
        """Return the first rows as a read-only array (count, *shape), which the system reads as needed.

        Args:
            count: Number of committed rows.

        Returns:
            The rows. They stay readable after the file is deleted.

        Raises:
            FileNotFoundError: There is no file; another process has replaced it.
            SearchError: The file is shorter than `count` rows.
        """
        if count == 0:
            return np.empty((0, *self.shape), self.dtype)
        if self.path.stat().st_size < count * self.row_bytes:
            raise self._too_short(count)
        return np.asarray(np.memmap(self.path, self.dtype, "r", shape=(count, *self.shape)))

    def copy_rows(self, source: Rows, indices: NDArray[np.int64]) -> None:
        """Fill this file with rows of another one.

        Args:
            source: The rows of the other file.
            indices: The rows to copy, in this order.

        Raises:
            SearchError: The rows cannot be written.
        """
        self.path.unlink(missing_ok=True)
        size = max(1, _COPY_BYTES // self.row_bytes)
        for start in range(0, len(indices), size):
            self.write(start, source[indices[start : start + size]])

    def _too_short(self, count: int) -> SearchError:
        size = self.path.stat().st_size if self.path.exists() else 0
        return SearchError(
            f"{self.path} must have {count * self.row_bytes} bytes, got {size}: it is damaged; restore it from a "
            "backup, or delete the index and index the images again"
        )


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file durable, where the system allows it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
