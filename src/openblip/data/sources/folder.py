"""A folder of images, with a text file next to each image, or with one file of metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from openblip.data.images import Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns
from openblip.data.skips import PathFilter, Skips
from openblip.data.sources.base import Source
from openblip.data.sources.combined import ConcatSource
from openblip.data.sources.parquet import open_parquet
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.data.sources.text import open_csv, open_jsonl
from openblip.errors import InputError
from openblip.preprocess.formats import (
    SKIPPED_FOLDERS,
    is_image_name,
    may_be_image,
    starts_like_image,
    suffix_of,
    unread_kind,
)

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
    chosen: PathFilter | None = None,
    skips: Skips | None = None,
) -> Source:
    """Open a folder of images, sorted by path; a record's address is the path of its image.

    The captions of `photo.jpg` are the lines of `photo.txt` or `photo.caption`. A `metadata.jsonl`, `.csv` or
    `.parquet` (`file_name`, `text`) replaces the images and texts next to it. Hidden files, linked folders, and folders
    of thumbnails and deleted files that systems add are skipped. A folder that cannot be read is a problem.

    Args:
        path: The folder.
        recursive: Include the folders below it.
        texts: Read captions and metadata; otherwise the records have images only.
        sidecars: Suffixes of caption files, in order of preference.
        columns: The column of a field in the metadata, where it differs from the schema.
        keep: Further columns of the metadata to keep.
        chosen: Patterns that files must fit.
        skips: Counts the files that are passed over; by default `Source.skips` does.

    Returns:
        The records of the folder.

    Raises:
        InputError: If a file of metadata is empty or cannot be read.
    """
    if not texts:
        return _open_images(path, recursive, (), chosen, skips)
    metadata = [name for name in walk(path, recursive) if os.path.basename(name) in METADATA]  # noqa: PTH119
    if metadata:
        sources: list[Source] = [_open_metadata(name, columns, keep) for name in metadata]
        return sources[0] if len(sources) == 1 else ConcatSource(sources)
    return _open_images(path, recursive, sidecars, chosen, skips)


def walk(
    path: str,
    recursive: bool = True,
    *,
    chosen: PathFilter | None = None,
    skips: Skips | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[str]:
    """Yield the files below a folder in sorted order, without hidden files and folders, and without linked folders.

    Args:
        path: The folder.
        recursive: Include the folders below it.
        chosen: Patterns that files must fit.
        skips: Counts the files and folders that are passed over.
        problems: Receives the folders that cannot be read.

    Yields:
        The path of each file.
    """
    chosen, skips = chosen or PathFilter(), skips if skips is not None else Skips()

    def report(error: OSError) -> None:
        if problems is not None:
            problems.append(Problem(str(error.filename), f"cannot read the folder: {error.strerror or error}"))

    for folder, folders, files in os.walk(path, onerror=report):
        below = os.path.relpath(folder, path) if folder != path else ""
        below = "" if below in ("", ".") else below + "/"
        kept = []
        for name in sorted(folders) if recursive else ():
            full_path = os.path.join(folder, name)  # noqa: PTH118
            if name.startswith("."):
                skips.add("hidden folder", name)
            elif SKIPPED_FOLDERS.fullmatch(name):
                skips.add("system folder", name)
            elif chosen.excludes_folder(below + name):
                skips.add("excluded folder", below + name)
            elif os.path.islink(full_path):  # noqa: PTH114
                skips.add("linked folder", below + name)
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            if name.startswith("."):
                if is_image_name(name):
                    skips.add("AppleDouble file" if name.startswith("._") else "hidden image", below + name)
            elif rejection := chosen.reject(below + name):
                if is_image_name(name):
                    skips.add(rejection)
            else:
                yield os.path.join(folder, name)  # noqa: PTH118


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


def is_taken(name: str, chosen: PathFilter | None, skips: Skips | None = None) -> bool:
    """Return whether a folder stands for one of its files, and count images and videos that it does not stand for.

    Args:
        name: Path of the file.
        chosen: Patterns that the file fits. With patterns to include, the suffix does not matter.
        skips: Counts the files that are passed over.
    """
    if is_image_name(name) or (chosen is not None and chosen.include):
        return True
    if skips is not None:
        kind = unread_kind(name)
        if kind:
            skips.add(kind, suffix_of(name))
        elif may_be_image(name) and _starts_like_image(name):
            skips.add("image without the suffix of an image", os.path.basename(name))  # noqa: PTH119
    return False


def _starts_like_image(name: str) -> bool:
    try:
        if not os.path.isfile(name):  # noqa: PTH113 (a pipe would wait)
            return False
        with open(name, "rb") as file:  # noqa: PTH123
            return starts_like_image(file.read(16))
    except OSError:
        return False


def _open_images(
    path: str, recursive: bool, sidecars: Sequence[str], chosen: PathFilter | None, skips: Skips | None
) -> Table:
    path = path.rstrip("/") if len(path) > 1 else path
    builder = TableBuilder(path, Locator())
    problems: list[Problem] = []
    skips = builder.skips if skips is None else skips
    for name in walk(path, recursive, chosen=chosen, skips=skips, problems=problems):
        if not is_taken(name, chosen, skips):
            continue
        try:
            captions = _read_captions(name, sidecars)
        except UnicodeDecodeError:
            builder.reject(name.removeprefix(path), "the caption file is not UTF-8")
        except OSError as error:
            builder.reject(name.removeprefix(path), f"cannot read the caption file: {error.strerror or error}")
        else:
            builder.add(name.removeprefix(path), {"captions": captions}, [name])
    for problem in problems:
        builder.reject(problem.address.removeprefix(path), problem.reason)
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
