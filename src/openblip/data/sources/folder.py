"""A folder of images, with a text file next to each image, or with one file of metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from openblip.data.images import IMAGE_SUFFIXES, Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns
from openblip.data.sources.base import Source
from openblip.data.sources.combined import ConcatSource
from openblip.data.sources.parquet import open_parquet
from openblip.data.sources.table import Table, TableBuilder, read_record
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
    """Open a folder of images, sorted by path; a record's address is the path of its image.

    The captions of `photo.jpg` are the lines of `photo.txt` or `photo.caption`. A `metadata.jsonl`, `.csv` or
    `.parquet` (`file_name`, `text`) replaces the images and texts next to it. Hidden files and linked folders are
    skipped.

    Args:
        path: The folder.
        recursive: Include the folders below it.
        texts: Read captions and metadata; otherwise the records have images only.
        sidecars: Suffixes of caption files, in order of preference.
        columns: The column of a field in the metadata, where it differs from the schema.
        keep: Further columns of the metadata to keep.

    Returns:
        The records of the folder.

    Raises:
        InputError: If a file of metadata is empty or cannot be read.
    """
    if not texts:
        return _open_images(path, recursive, ())
    metadata = [name for name in walk(path, recursive) if os.path.basename(name) in METADATA]  # noqa: PTH119
    if metadata:
        sources: list[Source] = [_open_metadata(name, columns, keep) for name in metadata]
        return sources[0] if len(sources) == 1 else ConcatSource(sources)
    return _open_images(path, recursive, sidecars)


def walk(path: str, recursive: bool = True) -> Iterator[str]:
    """Yield the files below a folder in sorted order, without hidden files and linked folders."""
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))  # noqa: PTH118


def read_image(name: str, sidecars: Sequence[str] = SIDECARS) -> Record | Problem:
    """Return the record of an image file with the captions next to it.

    Args:
        name: Path of the image.
        sidecars: Suffixes of caption files, in order of preference.

    Returns:
        The record, or the reason why there is none.
    """
    try:
        captions = _read_captions(name, sidecars)
    except UnicodeDecodeError:
        return Problem(name, "the caption file is not UTF-8")
    except OSError as error:
        return Problem(name, f"cannot read the caption file: {error.strerror or error}")
    return read_record({"captions": captions}, name, name, Locator(), images=[name])


def _open_images(path: str, recursive: bool, sidecars: Sequence[str]) -> Table:
    path = path.rstrip("/") if len(path) > 1 else path
    builder = TableBuilder(path, Locator())
    for name in walk(path, recursive):
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:  # noqa: PTH122 (Path costs ten times as much)
            continue
        try:
            captions = _read_captions(name, sidecars)
        except UnicodeDecodeError:
            builder.reject(name.removeprefix(path), "the caption file is not UTF-8")
        except OSError as error:
            builder.reject(name.removeprefix(path), f"cannot read the caption file: {error.strerror or error}")
        else:
            builder.add(name.removeprefix(path), {"captions": captions}, [name])
    return builder.build()


def _read_captions(image: str, sidecars: Sequence[str]) -> list[str]:
    stem = os.path.splitext(image)[0]  # noqa: PTH122
    for suffix in sidecars:
        try:
            text = Path(stem + suffix).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    return []


def _open_metadata(name: str, columns: Columns | None, keep: Sequence[str]) -> Source:
    if name.endswith(".parquet"):
        return open_parquet(name, columns=columns, keep=keep)
    opener = open_csv if name.endswith(".csv") else open_jsonl
    table = opener(name, columns=columns, keep=keep)
    if not len(table) and not table.problems:
        raise InputError(f"{name} is empty")
    return table
