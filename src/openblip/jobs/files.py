"""Files that a job reads and writes. Errors name the file, and state that the job can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from openblip.errors import JobError
from openblip.io import atomic


@contextmanager
def replace_file(path: str, *, sync: bool = True, modified_ns: int | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` when the block ends without an error.

    Args:
        path: The file to create or replace.
        sync: Flush the content to the disk before the file is replaced.
        modified_ns: Modification time of the new file, in nanoseconds.

    Yields:
        The temporary file. It has the same name in every run, so that killed runs leave at most one.

    Raises:
        JobError: If the file cannot be written.
    """
    try:
        with atomic.replace_file(path, sync=sync, fixed_name=True, modified_ns=modified_ns) as file:
            yield file
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}; run the job again to resume it") from error


def write_text(path: str, text: str) -> None:
    """Write a text file atomically, with undecodable bytes of [`read_text`][openblip.jobs.files.read_text] restored.

    Args:
        path: The file to create or replace.
        text: The new content.

    Raises:
        JobError: If the file cannot be written.
    """
    with replace_file(path, sync=False) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def read_text(path: str) -> str | None:
    """Return the content of a text file, or `None` if it does not exist.

    Bytes that are not UTF-8 become surrogates, which [`write_text`][openblip.jobs.files.write_text] restores.

    Args:
        path: The file to read.

    Raises:
        JobError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (Path costs time for many images)
            return file.read().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror or error}") from error
