"""Read and append JSON Lines: one JSON value per line, in UTF-8.

Only `\\n` ends a line. Characters such as U+2028, which `str.splitlines` takes for line ends, may stand in a text, so
lines are split as bytes. A byte order mark in front of a line, and blank lines, are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""A value that JSON can express."""


class Line(NamedTuple):
    """A line of a file and its position."""

    number: int
    """Number of the line, from 1. Blank lines count."""
    content: bytes
    """The line, without byte order mark and without white space at its ends."""
    end: int
    """Position of the first byte after the line."""
    complete: bool
    """Whether the line ends in `\\n`. An interrupted writer leaves a last line that does not."""


def dumps(value: Any) -> str:
    """Return `value` as one line of JSON, without the line end. Text that is not ASCII stays readable.

    Args:
        value: Anything that `json` can write.

    Returns:
        The line.
    """
    return json.dumps(value, ensure_ascii=False)


def encode(value: Any) -> bytes:
    """Return `value` as one line of JSON with its line end, in UTF-8.

    Lone surrogates, which stand for the bytes of file names that are not UTF-8, are written as JSON escapes.

    Args:
        value: Anything that `json` can write.

    Returns:
        The line.
    """
    return dumps(value).encode("utf-8", "backslashreplace") + b"\n"


def decode(line: bytes) -> Any:
    """Return the value of one line.

    Args:
        line: A line, with or without line end and byte order mark.

    Returns:
        The JSON value.

    Raises:
        ValueError: If the line is not UTF-8 or not JSON, or is nested too deeply.
    """
    try:
        return json.loads(line.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def iter_lines(source: bytes | IO[bytes]) -> Iterator[Line]:
    """Yield the lines of a file that are not blank.

    Args:
        source: The content of the file, or a binary file.

    Yields:
        Each line with its position.
    """
    end = 0
    for number, raw in enumerate(BytesIO(source) if isinstance(source, bytes) else source, start=1):
        end += len(raw)
        content = raw.removeprefix(b"\xef\xbb\xbf").strip()
        if content:
            yield Line(number, content, end, raw.endswith(b"\n"))


def read(path: str | os.PathLike[str], *, skip_partial: bool = False) -> Iterator[Any]:
    """Yield the values of a file, which is read line by line.

    Args:
        path: The file.
        skip_partial: Ignore a last line that does not end in `\\n`, as an interrupted writer leaves it.

    Yields:
        The JSON value of each line.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is not JSON. The message names the file and the line.
    """
    with Path(path).open("rb") as file:
        for line in iter_lines(file):
            if skip_partial and not line.complete:
                return
            try:
                value = decode(line.content)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}:{line.number} is not JSON: {error}") from error
            yield value


def append(file: IO[bytes], values: Iterable[Any], *, sync: bool = False) -> None:
    """Append lines to a file. If that fails, the file is cut back to its former length.

    Args:
        file: A binary file, open for appending.
        values: The values to append, in this order.
        sync: Return only when the lines are on the disk.

    Raises:
        OSError: If the lines cannot be written, for example because the disk is full.
    """
    content = b"".join(encode(value) for value in values)
    size = os.fstat(file.fileno()).st_size
    try:
        while content:
            content = content[file.write(content) :]
        file.flush()
        if sync:
            os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)  # part of a line may have fit on the disk
        raise
