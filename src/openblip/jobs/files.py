"""Writing so that a reader finds the old file or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import IO, Any

from openblip.errors import JobError


@contextmanager
def replacing(path: str, *, sync: bool = True, keep_time: int | None = None) -> Iterator[IO[Any]]:
    """A binary file that takes the place of ``path`` when the block is left, and never if it fails.

    The half-written file has one fixed name for each ``path``, so that a crash leaves at most one, and the next run
    takes its place. ``keep_time`` is the time of change in nanoseconds that it gets. :class:`JobError` if it cannot be
    written.
    """
    folder, name = os.path.split(path)
    short = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    temporary = os.path.join(folder, f".openblip-{short}.part")  # noqa: PTH118 (names of 255 bytes leave no room)
    try:
        os.makedirs(folder or ".", exist_ok=True)  # noqa: PTH103
        with open(temporary, "wb") as file:  # noqa: PTH123
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if os.path.exists(path):  # noqa: PTH110
            os.chmod(temporary, os.stat(path).st_mode & 0o7777)  # noqa: PTH101, PTH116
        if keep_time is not None:
            os.utime(temporary, ns=(keep_time, keep_time))
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        _drop(temporary)
        raise JobError(f"cannot write {path}: {error.strerror or error}; the job goes on when run again") from error
    except BaseException:
        _drop(temporary)
        raise


def write_text(path: str, text: str) -> None:
    """Put a text into a file, whole or not at all; characters that stand for undecodable bytes become these again."""
    with replacing(path, sync=False) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def read_text(path: str) -> str | None:
    """The text of a file, ``None`` if there is none; bytes that are no UTF-8 survive :func:`write_text`."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror or error}") from error


def _drop(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)  # noqa: PTH108
