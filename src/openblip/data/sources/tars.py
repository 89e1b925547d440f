"""WebDataset tars: members whose names agree up to the first dot form one record (photo.jpg, photo.json, photo.txt).

Local tars are indexed once and read at random, so they shuffle as well as any list; other tars are streamed. Python's
`tarfile` reads both, because the webdataset library reports no offsets of members and its shuffles depend on the number
of workers.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.data.files import is_local, open_remote
from openblip.data.images import IMAGE_SUFFIXES, ImageRef, MemoryImage, SpanImage
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns, parse_row
from openblip.data.sources.base import Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import InputError

MAX_RETRIES = 3
_TEXT_SUFFIXES = ("json", "txt", "caption")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError)


def open_tar(path: str, *, columns: Columns | None = None, keep: Sequence[str] = ()) -> Table:
    """Index a local, uncompressed tar; a record's address is `path:key`.

    Args:
        path: The tar.
        columns: The column of a field in the JSON members, where it differs from the schema.
        keep: Further columns to keep.

    Returns:
        The records of the tar. A tar that is cut short gives the records before the cut, and a problem.
    """
    builder = TableBuilder(path, _SpanLocator(path), columns, keep)
    try:
        with tarfile.open(path, "r:", tarinfo=_StrictHeader) as tar:
            for group in _groups(_members(tar, _is_text, Path(path).stat().st_size)):
                _add_group(builder, group)
    except _TAR_ERRORS as error:
        builder.reject("", _describe(error))
    return builder.build()


def _add_group(builder: TableBuilder, group: _Group) -> None:
    try:
        row = _read_row(group, builder.columns)
    except InputError as error:
        builder.reject(f":{group.key}", str(error))
    else:
        builder.add(f":{group.key}", row, [(m.name, m.offset, m.size) for m in group.images])


class TarStream(Stream):
    """Tars read in sequence, local or at any fsspec address, compressed or not; each tar is a shard.

    An interrupted connection is opened again and continued, up to three times in a row.
    """

    def __init__(self, paths: Sequence[str], *, columns: Columns | None = None, keep: Sequence[str] = ()) -> None:
        self.paths = tuple(paths)
        self.shards = len(paths)
        self.name = paths[0] if len(paths) == 1 else f"{len(paths)} tars from {paths[0]}"
        self._columns, self._keep = columns, keep

    def read(self, shard: int) -> Iterator[Record | Problem]:
        """Yield the records of one tar, with their images in memory."""
        path, num_yielded, failures = self.paths[shard], 0, 0
        while True:
            number = 0
            try:
                for group in self._read_groups(path):
                    number += 1
                    if number > num_yielded:
                        num_yielded, failures = number, 0
                        yield self._read_record(path, group)
            except _TAR_ERRORS as error:
                failures += 1
                if failures < MAX_RETRIES and not is_local(path) and not isinstance(error, FileNotFoundError):
                    continue
                yield Problem(path, _describe(error))
            return

    def _read_groups(self, path: str) -> Iterator[_Group]:
        if is_local(path):
            with tarfile.open(path, "r|*", tarinfo=_StrictHeader) as tar:
                yield from _groups(_members(tar, _is_read))
        else:
            with open_remote(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictHeader) as tar:
                yield from _groups(_members(tar, _is_read))

    def _read_record(self, path: str, group: _Group) -> Record | Problem:
        address = f"{path}:{group.key}"
        try:
            row = _read_row(group, self._columns)
        except InputError as error:
            return Problem(address, str(error))

        def locate(member: _Member, address: str) -> ImageRef:
            return MemoryImage(member.data or b"", f"{path}:{member.name}")

        return read_record(row, address, path, locate, images=group.images, columns=self._columns, keep=self._keep)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read the tar: {error.strerror}"
    return f"the tar is damaged or cut short ({error})"


class _StrictHeader(tarfile.TarInfo):
    """A header that must be complete; `tarfile` itself accepts a broken header as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictHeader:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the empty blocks that end an archive
                raise
            raise tarfile.ReadError(str(error)) from error


@dataclass
class _Member:
    name: str
    suffix: str  # everything after the first dot, in lower case
    offset: int
    size: int
    data: bytes | None


@dataclass
class _Group:
    """The members of one record, which are adjacent in the tar."""

    key: str
    members: list[_Member] = field(default_factory=list)

    @property
    def images(self) -> list[_Member]:
        """The images in order of their suffixes: `img0.png` before `img1.png`."""
        images = [member for member in self.members if _is_image(member.name)]
        return sorted(images, key=lambda member: member.suffix)


class _SpanLocator:
    """Makes references of (name, offset, size) triples."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, value: Any, address: str) -> ImageRef:
        name, offset, size = value
        return SpanImage(self.path, name, offset, size)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _is_text(suffix: str) -> bool:
    return suffix in _TEXT_SUFFIXES


def _is_read(suffix: str) -> bool:
    return suffix in _TEXT_SUFFIXES or _is_image("image." + suffix)


def _members(tar: tarfile.TarFile, is_read: Callable[[str], bool], total: int | None = None) -> Iterator[_Member]:
    """Yield the files of a tar, with the content of those whose suffix `is_read`; `total` is the size of the tar."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header
        if not info.isreg():
            continue
        base = info.name.rpartition("/")[2]
        stem, _, suffix = base.partition(".")
        if not stem:  # hidden files, such as those macOS adds
            continue
        suffix = suffix.lower()
        data = None
        if total is not None and info.offset_data + info.size > total:
            raise tarfile.ReadError("unexpected end of data")
        if is_read(suffix):
            stream = tar.extractfile(info)
            data = stream.read() if stream else b""
            if len(data) != info.size:
                raise tarfile.ReadError("unexpected end of data")
        yield _Member(info.name, suffix, info.offset_data, info.size, data)


def _groups(members: Iterator[_Member]) -> Iterator[_Group]:
    """Yield adjacent members of one key together; an error of the tar is raised after the last complete group."""
    group: _Group | None = None
    failure: Exception | None = None
    try:
        for member in members:
            key = member.name[: len(member.name) - len(member.suffix) - 1] if member.suffix else member.name
            if group is None or group.key != key:
                if group is not None:
                    yield group
                group = _Group(key)
            group.members.append(member)
    except _TAR_ERRORS as error:
        failure = error
    if group is not None:
        yield group
    if failure is not None:
        raise failure


def _read_row(group: _Group, columns: Columns | None) -> dict[str, Any]:
    """Return the JSON of a group, with the captions of its text file if the JSON has none."""
    texts = {member.suffix: member.data or b"" for member in group.members if member.suffix in _TEXT_SUFFIXES}
    try:
        row = json.loads(texts["json"]) if "json" in texts else {}
        plain = next((texts[suffix].decode("utf-8-sig") for suffix in ("txt", "caption") if suffix in texts), "")
    except UnicodeDecodeError:
        raise InputError("its text is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"its JSON cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise InputError("its JSON is not an object")
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if texts.keys() - {"json"} and not (columns and "caption" in columns) and not parse_row(row).captions:
        row["captions"] = lines or [""]  # an empty file is an empty caption
    return row
