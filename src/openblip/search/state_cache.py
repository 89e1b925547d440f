"""A bounded cache of image states: one file per image, the least recently used ones deleted first."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from openblip.io.atomic import write_bytes
from openblip.search.matrix import Rows

_SHARE = 0.9  # of the limit that remains after a cleaning


class StateCache:
    """Image states on disk, by the content of the image. Threads and processes may share it.

    Args:
        folder: The folder of the cache.
        shape: Shape (M, D) of the states.
        max_bytes: Size of all states to keep.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], max_bytes: int) -> None:
        self.folder = folder
        self.shape = shape
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._size: int | None = None  # of all files, as far as this process knows

    def get(self, key: str) -> Rows | None:
        """Return the states of an image, or `None` if they are not in the cache.

        Args:
            key: Hash of the image file.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)  # it was used now
        values = np.frombuffer(content, "<f2")
        return values.reshape(self.shape) if values.size == self.shape[0] * self.shape[1] else None

    def put(self, key: str, states: Rows) -> None:
        """Store the states of an image. A full disk or a read-only folder costs time only.

        Args:
            key: Hash of the image file.
            states: The states (M, D).
        """
        content = np.ascontiguousarray(states, "<f2").tobytes()
        if len(content) > self.max_bytes:
            return
        with self._lock, suppress(OSError):
            write_bytes(self._path(key), content)
            if self._size is not None:
                self._size += len(content)
            if self._size is None or self._size > self.max_bytes:
                self._size = self._clean()

    def _clean(self) -> int:
        """Delete the least recently used files if there are too many, and return the size of the others."""
        files = []
        for path in self.folder.glob("??/*.fp16"):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        size = sum(bytes for _, bytes, _ in files)
        if size > self.max_bytes:
            for _, bytes, path in sorted(files):
                if size <= _SHARE * self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                size -= bytes
        return size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.fp16"
