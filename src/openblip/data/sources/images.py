"""The images of a job: files, folders, globs, lists of paths, tars and addresses, in any mixture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from openblip.data.files import is_local, parent
from openblip.data.images import Locator
from openblip.data.problems import Problem
from openblip.data.schema import Columns
from openblip.data.skips import PathFilter, Skips
from openblip.data.sources import open_source
from openblip.data.sources.addresses import HUB_PREFIX, expand, is_bulk, is_table
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.folder import open_folder, walk
from openblip.data.sources.table import TableBuilder
from openblip.errors import InputError
from openblip.preprocess.formats import is_image_name, is_system_path

PathKind = Literal["image", "folder", "glob", "table"]


@dataclass(frozen=True)
class RootedSource:
    """A source, and the folder that the names of its images are relative to; `None` is the folder of each image."""

    source: Source | Stream
    root: str | None


def open_images(
    paths: Iterable[str],
    *,
    recursive: bool = False,
    images: str | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
    chosen: PathFilter | None = None,
    skips: Skips | None = None,
) -> Iterator[RootedSource | Problem]:
    """Open the images that paths name, in order.

    A folder stands for its images, without the texts next to them, or for its tars or Parquet files if it has no
    image. A file that is not a table and not a tar is treated as an image, whatever its suffix.

    Args:
        paths: Files, folders, globs and addresses.
        recursive: Include the images below a folder.
        images: Folder for relative image paths in tables.
        columns: The column of a field in tables, where it differs from the schema.
        keep: Further columns of tables to keep.
        chosen: Patterns that the files of folders must fit.
        skips: Counts the files that folders and globs pass over.

    Yields:
        A source per path, or per run of image files; a `Problem` in place of a path that names nothing.
    """
    files: list[str] = []
    for path in paths:
        kind = path_kind(path)
        if kind == "image":  # a run of files becomes one source
            files.append(path)
            continue
        if files:
            yield RootedSource(_open_files(files), None)
            files = []
        try:
            if kind == "glob":
                yield _open_glob(path, skips)
            elif kind == "folder":
                yield _open_folder(path, recursive, images, columns, keep, chosen, skips)
            else:
                yield _open_table(path, images, columns, keep)
        except InputError as error:
            yield Problem(path, str(error))
    if files:
        yield RootedSource(_open_files(files), None)


def path_kind(path: str) -> PathKind:
    """Return the kind of a path; tars count as tables."""
    if path.startswith(HUB_PREFIX) or is_table(path):
        return "table"
    if is_local(path) and os.path.isdir(path):  # noqa: PTH112 (str in, str out: names may hold undecodable bytes)
        return "folder"
    if not is_local(path) or os.path.lexists(path) or not any(letter in path for letter in "*?[{"):
        return "image"
    return "glob"


def glob_root(pattern: str) -> str:
    """Return the folder of a glob before its first wild card; a path without wild cards is returned unchanged."""
    wild_card = min(pattern.find(letter) % (len(pattern) + 1) for letter in "*?[{")
    if wild_card == len(pattern) or os.path.lexists(pattern):
        return pattern
    return os.path.dirname(pattern[:wild_card])  # noqa: PTH120


def _open_glob(path: str, skips: Skips | None) -> RootedSource:
    root = glob_root(path)
    names = []
    for name in expand(path):
        below = name.removeprefix(root)
        if os.path.isdir(name):  # noqa: PTH112
            continue
        if is_system_path(below) and not is_system_path(path.removeprefix(root)):  # matched by a wild card
            if skips is not None:
                skips.add("file in a system folder", below.lstrip("/").rpartition("/")[0])
            continue
        names.append(name)
    if not names:
        raise InputError(f"{path} matches no file")
    return RootedSource(_open_files(names), root)


def _open_folder(
    path: str,
    recursive: bool,
    images: str | None,
    columns: Columns | None,
    keep: Sequence[str],
    chosen: PathFilter | None,
    skips: Skips | None,
) -> RootedSource:
    skips = Skips() if skips is None else skips
    table = open_folder(path, recursive=recursive, texts=False, chosen=chosen, skips=skips)
    if len(table) or table.problems:
        return RootedSource(table, path)
    if any(is_bulk(name) for name in walk(path)):
        return _open_table(path, images, columns, keep)
    passed_over = skips.describe()
    if passed_over:
        raise InputError(f"{path} has no images; passed over: {passed_over}")
    below = any(is_image_name(name) for name in walk(path))
    hint = "there are some in the folders below: pass --recursive" if below else "name another folder, or the files"
    raise InputError(f"{path} has no images; {hint}")


def _open_table(path: str, images: str | None, columns: Columns | None, keep: Sequence[str]) -> RootedSource:
    source = open_source(path, images=images, columns=columns, keep=keep)
    return RootedSource(source, images if images is not None else parent(path))


def _open_files(names: Sequence[str]) -> Source:
    builder = TableBuilder("", Locator())
    for name in names:
        builder.add(name, {}, [name])
    return builder.build()
