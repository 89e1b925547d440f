"""Files that a job reads and writes. Errors name the file, and state that the job can be resumed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from openblip.errors import JobError
from openblip.io import atomic

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class ItemFileError(JobError):
    """The file of one item cannot be read or written. The other items of the job are not affected."""


@contextmanager
def replace_file(path: str, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` when the block ends without an error.

    Args:
        path: The file to create or replace.
        sync: Flush the content to the disk before the file is replaced.

    Yields:
        The temporary file. It has the same name in every run, so that killed runs leave at most one.

    Raises:
        JobError: If the file cannot be written.
    """
    try:
        with atomic.replace_file(path, sync=sync, fixed_name=True) as file:
            yield file
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}; run the job again to resume it") from error


def write_item_file(path: str, content: bytes, *, sync: bool = False, times_ns: tuple[int, int] | None = None) -> None:
    """Write the file of one item atomically. A file that it replaces keeps its identity.

    Args:
        path: The file to create or replace.
        content: The new content.
        sync: Flush the content to the disk before the file is replaced.
        times_ns: Access and modification time of the new file, in nanoseconds. The default is the time of writing.

    Raises:
        ItemFileError: If the file cannot be written, or cannot keep its owner, its links or its attributes.
        JobError: If the disk is full.
    """
    try:
        with atomic.replace_file(path, sync=sync, fixed_name=True, times_ns=times_ns, strict=True) as file:
            file.write(content)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        if error.errno in _DISK_FULL:
            raise JobError(f"{message}; run the job again to resume it") from error
        raise ItemFileError(message) from error


def check_item_file(path: str) -> None:
    """Check that [`write_item_file`][openblip.jobs.files.write_item_file] can write a file.

    Raises:
        ItemFileError: If it cannot.
    """
    try:
        atomic.check_replaceable(path)
    except OSError as error:
        raise ItemFileError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: str, text: str) -> None:
    """Write a text file atomically, with undecodable bytes of [`read_text`][openblip.jobs.files.read_text] restored.

    Args:
        path: The file to create or replace.
        text: The new content.

    Raises:
        ItemFileError: If the file cannot be written.
        JobError: If the disk is full.
    """
    write_item_file(path, text.encode("utf-8", "surrogateescape"))


def read_text(path: str) -> str | None:
    """Return the content of a text file, or `None` if it does not exist.

    Bytes that are not UTF-8 become surrogates, which [`write_text`][openblip.jobs.files.write_text] restores.

    Args:
        path: The file to read.

    Raises:
        ItemFileError: If the file cannot be read.
    """
    content = read_bytes(path)
    return None if content is None else content.decode("utf-8", "surrogateescape")


def read_bytes(path: str) -> bytes | None:
    """Return the content of a file, or `None` if it does not exist.

    Args:
        path: The file to read.

    Raises:
        ItemFileError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (Path costs time for many images)
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ItemFileError(f"cannot read {path}: {error.strerror or error}") from error
