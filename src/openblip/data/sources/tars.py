"""WebDataset tars: members that share a name up to its first dot are one record (photo.jpg, photo.json, photo.txt).

Local tars are indexed once and read at random, so that they shuffle as well as any list; others are streamed. Python's
``tarfile`` reads both: the webdataset library tells no offsets of members, and its shuffles depend on the workers.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.data.files import is_local, remote
from openblip.data.images import IMAGE_SUFFIXES, ImageRef, MemoryImage, SpanImage
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns, parse
from openblip.data.sources.base import Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import InputError

RETRIES = 3
_TEXTS = ("json", "txt", "caption")
_BROKEN = (tarfile.TarError, OSError, EOFError)


def open_tar(path: str, *, columns: Columns | None = None, keep: Sequence[str] = ()) -> Table:
    """A local, uncompressed tar, indexed. A record's address is ``path:key``.

    A tar that is cut short gives the records before the cut, and a problem.
    """
    builder = TableBuilder(path, _Span(path), columns, keep)
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as tar:
            for group in _groups(_members(tar, _is_text, Path(path).stat().st_size)):
                _index(builder, group)
    except _BROKEN as error:
        builder.reject("", _broken(error))
    return builder.build()


def _index(builder: TableBuilder, group: _Group) -> None:
    try:
        row = _row(group, builder.columns)
    except InputError as error:
        builder.reject(f":{group.key}", str(error))
    else:
        builder.add(f":{group.key}", row, [(m.name, m.offset, m.size) for m in group.images])


class TarStream(Stream):
    """Tars read from end to end, local or at any fsspec address, compressed or not; each is one shard.

    An interrupted connection is opened again, up to three times in a row, and goes on where it broke.
    """

    def __init__(self, paths: Sequence[str], *, columns: Columns | None = None, keep: Sequence[str] = ()) -> None:
        self.paths = tuple(paths)
        self.shards = len(paths)
        self.name = paths[0] if len(paths) == 1 else f"{len(paths)} tars from {paths[0]}"
        self._columns, self._keep = columns, keep

    def read(self, shard: int) -> Iterator[Record | Problem]:
        """The records of one tar, each with its pictures in memory."""
        path, given, failures = self.paths[shard], 0, 0
        while True:
            number = 0
            try:
                for group in self._open(path):
                    number += 1
                    if number > given:
                        given, failures = number, 0
                        yield self._record(path, group)
            except _BROKEN as error:
                failures += 1
                if failures < RETRIES and not is_local(path) and not isinstance(error, FileNotFoundError):
                    continue
                yield Problem(path, _broken(error))
            return

    def _open(self, path: str) -> Iterator[_Group]:
        if is_local(path):
            with tarfile.open(path, "r|*", tarinfo=_Header) as tar:
                yield from _groups(_members(tar, _is_read))
        else:
            with remote(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
                yield from _groups(_members(tar, _is_read))

    def _record(self, path: str, group: _Group) -> Record | Problem:
        address = f"{path}:{group.key}"
        try:
            row = _row(group, self._columns)
        except InputError as error:
            return Problem(address, str(error))

        def held(member: _Member, address: str) -> ImageRef:
            return MemoryImage(member.data or b"", f"{path}:{member.name}")

        return read_record(row, address, path, held, refs=group.images, columns=self._columns, keep=self._keep)


def _broken(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read the tar: {error.strerror}"
    return f"the tar is damaged or cut short ({error})"


# --- members ------------------------------------------------------------------------------------------------------


class _Header(tarfile.TarInfo):
    """A header that must be whole: tarfile itself takes a broken one, or the file's end, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the empty blocks that end an archive
                raise
            raise tarfile.ReadError(str(error)) from error


@dataclass
class _Member:
    name: str
    suffix: str  # all after the first dot, in lower case
    offset: int
    size: int
    data: bytes | None


@dataclass
class _Group:
    """The members of one record, which lie side by side."""

    key: str
    members: list[_Member] = field(default_factory=list)

    @property
    def images(self) -> list[_Member]:
        """The pictures, in the order of their suffixes: ``img0.png`` before ``img1.png``."""
        found = [m for m in self.members if _is_picture(m.name)]
        return sorted(found, key=lambda member: member.suffix)


class _Span:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, ref: Any, address: str) -> ImageRef:
        name, offset, size = ref
        return SpanImage(self.path, name, offset, size)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _is_text(suffix: str) -> bool:
    return suffix in _TEXTS


def _is_read(suffix: str) -> bool:
    return suffix in _TEXTS or _is_picture("picture." + suffix)


def _members(tar: tarfile.TarFile, wanted: Callable[[str], bool], total: int | None = None) -> Iterator[_Member]:
    """The files of a tar of ``total`` bytes, with their content where it is ``wanted``."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
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
        if wanted(suffix):
            stream = tar.extractfile(info)
            data = stream.read() if stream else b""
            if len(data) != info.size:
                raise tarfile.ReadError("unexpected end of data")
        yield _Member(info.name, suffix, info.offset_data, info.size, data)


def _groups(members: Iterator[_Member]) -> Iterator[_Group]:
    group: _Group | None = None
    broken: Exception | None = None
    try:
        for member in members:
            key = member.name[: len(member.name) - len(member.suffix) - 1] if member.suffix else member.name
            if group is None or group.key != key:
                if group is not None:
                    yield group
                group = _Group(key)
            group.members.append(member)
    except _BROKEN as error:
        broken = error
    if group is not None:  # also where the tar breaks behind it
        yield group
    if broken is not None:
        raise broken


def _row(group: _Group, columns: Columns | None) -> dict[str, Any]:
    """What the texts of a group say: its JSON, and the caption of its ``.txt`` if the JSON has none."""
    texts = {member.suffix: member.data or b"" for member in group.members if member.suffix in _TEXTS}
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
    if lines and not (columns and "caption" in columns) and not parse(row).captions:
        row["captions"] = lines
    return row
