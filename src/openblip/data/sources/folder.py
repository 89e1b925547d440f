"""A folder of pictures, with a text beside each or with one file of metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from openblip.data.images import IMAGE_SUFFIXES, Locator
from openblip.data.schema import Columns
from openblip.data.sources.base import Source
from openblip.data.sources.combined import ConcatSource
from openblip.data.sources.parquet import open_parquet
from openblip.data.sources.table import Table, TableBuilder
from openblip.data.sources.text import open_csv, open_jsonl
from openblip.errors import InputError

SIDECARS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def open_folder(
    path: str,
    *,
    recursive: bool = True,
    texts: bool = True,
    sidecars: Sequence[str] = SIDECARS,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
) -> Source:
    """Every picture below a folder, sorted by path; a record's address is the picture's path.

    ``photo.jpg`` has its captions in ``photo.txt`` or ``photo.caption``, one in each line. Where a folder has a
    ``metadata.jsonl``, ``.csv`` or ``.parquet`` (``file_name``, ``text``), that file is the source instead. Hidden
    files and linked folders are passed over. Without ``texts`` it is the pictures alone.
    """
    if not texts:
        return _open_pictures(path, recursive, ())
    if metadata := list(_metadata(path, recursive)):
        parts: list[Source] = [_open_metadata(name, columns, keep) for name in metadata]
        return parts[0] if len(parts) == 1 else ConcatSource(parts)
    return _open_pictures(path, recursive, sidecars)


def walk(path: str, recursive: bool = True) -> Iterator[str]:
    """All files below a folder that are not hidden, in sorted order; links to folders are not followed."""
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))  # noqa: PTH118


def _open_pictures(path: str, recursive: bool, sidecars: Sequence[str]) -> Table:
    path = path.rstrip("/") if len(path) > 1 else path
    builder = TableBuilder(path, Locator())
    for name in walk(path, recursive):
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:  # noqa: PTH122 (Path costs ten times as much)
            continue
        try:
            captions = _captions(name, sidecars)
        except UnicodeDecodeError:
            builder.reject(name.removeprefix(path), "the text beside it is not UTF-8")
        except OSError as error:
            builder.reject(name.removeprefix(path), f"cannot read the text beside it: {error.strerror or error}")
        else:
            builder.add(name.removeprefix(path), {"captions": captions}, [name])
    return builder.build()


def _captions(picture: str, sidecars: Sequence[str]) -> list[str]:
    stem = os.path.splitext(picture)[0]  # noqa: PTH122
    for suffix in sidecars:
        try:
            text = Path(stem + suffix).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    return []


def _metadata(path: str, recursive: bool) -> Iterator[str]:
    return (name for name in walk(path, recursive) if os.path.basename(name) in METADATA)  # noqa: PTH119


def _open_metadata(name: str, columns: Columns | None, keep: Sequence[str]) -> Source:
    if name.endswith(".parquet"):
        return open_parquet(name, columns=columns, keep=keep)
    opener = open_csv if name.endswith(".csv") else open_jsonl
    table = opener(name, columns=columns, keep=keep)
    if not len(table) and not table.problems:
        raise InputError(f"{name} is empty")
    return table
