"""The heap of the C library: how much freed memory a process keeps, and when it returns it. Only glibc is adjusted."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # parameters of mallopt, in glibc's malloc.h
_LARGEST_THRESHOLD = 32 << 20  # bytes; the limit of glibc

_max_bytes = 0  # what the process keeps


def keep_freed_memory(max_bytes: int = 256 << 20, pad: int = 0) -> bool:
    """Let this process keep freed memory for its next allocation, if the C library is glibc.

    By default glibc requests memory from the system for each larger tensor and returns it at once, and the system
    clears every page each time: on a CPU this took a seventh of the time of a caption, and half of a training step.

    Args:
        max_bytes: The maximum number of bytes to keep at the end of each heap. A smaller number than in an earlier
            call has no effect.
        pad: Bytes to request from the system in addition, each time.

    Returns:
        Whether the setting is in effect.
    """
    global _max_bytes
    if max_bytes <= _max_bytes:
        return True
    library = _glibc()
    if library is None:
        return False
    options = [(_MMAP_THRESHOLD, _LARGEST_THRESHOLD), (_TRIM_THRESHOLD, max_bytes), *([(_TOP_PAD, pad)] if pad else [])]
    if not all(library.mallopt(*option) for option in options):
        return False
    _max_bytes = max_bytes
    return True


def return_freed_memory() -> None:
    """Return freed memory to the system, whatever `keep_freed_memory` has set."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """Return the C library if it is glibc, or `None`."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    # musl's loader may find itself under this name.
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
