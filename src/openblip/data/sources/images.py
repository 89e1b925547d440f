"""What a job goes through picture by picture: files, folders, globs, lists of paths, tars and addresses, mixed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from openblip.data.files import is_local, parent
from openblip.data.images import IMAGE_SUFFIXES, Locator
from openblip.data.problems import Problem
from openblip.data.schema import Columns
from openblip.data.sources import expand, is_table, open_source
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.folder import open_folder, walk
from openblip.data.sources.hub import PREFIX
from openblip.data.sources.table import TableBuilder
from openblip.errors import InputError


@dataclass(frozen=True)
class RootedSource:
    """A source and ``root``, the folder that the names of its pictures are told from; ``None`` is each one's own."""

    source: Source | Stream
    root: str | None


def open_images(
    paths: Iterable[str],
    *,
    recursive: bool = False,
    images: str | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
) -> Iterator[RootedSource | Problem]:
    """The sources that ``paths`` name, in their order; a :class:`Problem` in place of one that names nothing.

    A folder stands for its pictures, whatever is written beside them (with ``recursive`` also for those below it), or
    for its tars or Parquet files if it has no picture. Any other file that is no list and no tar is taken for a
    picture, whatever its suffix. ``images``, ``columns`` and ``keep`` are those of
    :func:`~openblip.data.sources.open_source`, for lists.
    """
    files: list[str] = []
    for path, found, root in _named(paths):
        if found == "image" and root is None:  # a run of files is one source
            files.append(path)
            continue
        if files:
            yield RootedSource(_listed(files), None)
            files = []
        try:
            yield _open(path, found, root, recursive, images, columns, keep)
        except InputError as error:
            yield Problem(path, str(error))
    if files:
        yield RootedSource(_listed(files), None)


def path_kinds(paths: Iterable[str]) -> list[str]:
    """What each path is taken for: a "image", a "folder", a "glob", or a "table", which tars are too."""
    return [found for _, found, _ in _named(paths)]


def _named(paths: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    """Each path with what it is and the root of its names; globs are looked up."""
    for path in paths:
        if path.startswith(PREFIX) or is_table(path):
            yield path, "table", None
        elif is_local(path) and os.path.isdir(path):  # noqa: PTH112 (str in, str out: names may hold undecodable bytes)
            yield path, "folder", path
        elif not is_local(path) or os.path.lexists(path) or not any(letter in path for letter in "*?[{"):
            yield path, "image", None
        else:
            yield path, "glob", glob_root(path)


def _open(
    path: str,
    found: str,
    root: str | None,
    recursive: bool,
    images: str | None,
    columns: Columns | None,
    keep: Sequence[str],
) -> RootedSource:
    if found == "glob":
        names = [name for name in expand(path) if not os.path.isdir(name)]  # noqa: PTH112
        if not names:
            raise InputError(f"{path} matches no file")
        return RootedSource(_listed(names), root)
    if found == "folder":
        table = open_folder(path, recursive=recursive, texts=False)
        if len(table) or table.problems:
            return RootedSource(table, root)
        if not any(is_table(name) for name in walk(path)):
            below = any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in walk(path))  # noqa: PTH122
            hint = "it has some below: give --recursive" if below else "name another folder, or the files"
            raise InputError(f"{path} holds no pictures; {hint}")
    source = open_source(path, images=images, columns=columns, keep=keep)
    return RootedSource(source, images if images is not None else parent(path))


def _listed(names: Sequence[str]) -> Source:
    builder = TableBuilder("", Locator())
    for name in names:
        builder.add(name, {}, [name])
    return builder.build()


def glob_root(pattern: str) -> str:
    """The folder of a glob that is written out, before its first wild card; what is no glob is returned as it is."""
    first = min(pattern.find(letter) % (len(pattern) + 1) for letter in "*?[{")
    if first == len(pattern) or os.path.lexists(pattern):
        return pattern
    return os.path.dirname(pattern[:first])  # noqa: PTH120
