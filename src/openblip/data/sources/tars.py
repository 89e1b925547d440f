"""WebDataset tars: members whose names agree up to the first dot form one record (photo.jpg, photo.json, photo.txt).

A dot before something that cannot name a field belongs to the name: `2023.05.01.jpg` is a record of its own. So are
`my.cat.jpg` and `my.dog.jpg`, unless a member such as `my.json` shows that they are two images of one record. As in any
tar, the last of several members of one name counts.

Local tars are indexed once and read at random, so they shuffle as well as any list; other tars are streamed. Python's
`tarfile` reads both, because the webdataset library reports no offsets of members and its shuffles depend on the number
of workers.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openblip.data.files import is_local, open_remote
from openblip.data.images import ImageRef, MemoryImage, SpanImage
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns, parse_row
from openblip.data.sources.base import Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import InputError
from openblip.preprocess.formats import is_image_name, is_system_path, suffix_of, unread_kind

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
            groups: dict[str, _Group] = {}  # members of one record need not be adjacent
            failure: Exception | None = None
            try:
                for member in _members(tar, _is_text, Path(path).stat().st_size):
                    key = _split_name(member.name)[0]
                    groups.setdefault(key, _Group(key)).members.append(member)
            except _TAR_ERRORS as error:
                failure = error
            for group in groups.values():
                for record in _divide(group):
                    _add_group(builder, record)
            if failure is not None:
                builder.reject("", _describe(failure))
    except _TAR_ERRORS as error:
        builder.reject("", _describe(error))
    return builder.build()


def _add_group(builder: TableBuilder, group: _Group) -> None:
    if not group.images:
        kind = group.unread_kind
        builder.reject(f":{group.key}", f"there is no image next to {group.listing}", kind=kind)
        return
    if group.replaced:
        reason = f"{group.replaced} members were replaced by later ones of the same name"
        builder.reject(f":{group.key}", reason, kind="replaced member of a tar", count=group.replaced)
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
        if not group.images:
            where = "next to it in the tar; in a tar that is streamed, the members of a record must be adjacent"
            return Problem(address, f"there is no image for {group.listing} {where}", group.unread_kind)
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
        """The images in order of their suffixes: `img0.png` before `img1.png`. The last one of each name counts."""
        images = {member.name: member for member in self.members if is_image_name(member.name)}
        return sorted(images.values(), key=lambda member: member.suffix)

    @property
    def replaced(self) -> int:
        """Number of members that a later one of the same name replaces."""
        return len(self.members) - len({member.name for member in self.members})

    @property
    def listing(self) -> str:
        """The names of the members, without their folders."""
        return ", ".join(dict.fromkeys(member.name.rpartition("/")[2] for member in self.members))

    @property
    def unread_kind(self) -> str:
        """The kind of a record without an image, in the singular."""
        kinds = filter(None, (unread_kind(member.name) for member in self.members))
        return next(kinds, "record of a tar without an image")


class _SpanLocator:
    """Makes references of (name, offset, size) triples."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, value: Any, address: str) -> ImageRef:
        name, offset, size = value
        return SpanImage(self.path, name, offset, size)


def _is_text(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _TEXT_SUFFIXES


def _is_read(suffix: str) -> bool:
    return _is_text(suffix) or is_image_name("image." + suffix)


def _members(tar: tarfile.TarFile, is_read: Callable[[str], bool], total: int | None = None) -> Iterator[_Member]:
    """Yield the files of a tar, with the content of those whose suffix `is_read`; `total` is the size of the tar."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header
        if not info.isreg():
            continue
        if info.name.rpartition("/")[2].startswith(".") or is_system_path(info.name):  # such as macOS adds
            continue
        suffix = _split_name(info.name)[1]
        data = None
        if total is not None and info.offset_data + info.size > total:
            raise tarfile.ReadError("unexpected end of data")
        if is_read(suffix):
            stream = tar.extractfile(info)
            data = stream.read() if stream else b""
            if len(data) != info.size:
                raise tarfile.ReadError("unexpected end of data")
        yield _Member(info.name, suffix, info.offset_data, info.size, data)


_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_+-]*")


def _split_name(name: str) -> tuple[str, str]:
    """Return the key of a member's record, and the rest of its name, after the first dot, in lower case.

    A dot is passed over if something behind it cannot be the name of a field, as in `2023.05.01.jpg`.
    """
    folder, slash, base = name.rpartition("/")
    steps = base.split(".")
    first = len(steps)
    while first > 1 and (_FIELD.fullmatch(steps[first - 1]) or first == len(steps)):
        first -= 1
    if first == len(steps) or not steps[0]:
        return name, ""
    return folder + slash + ".".join(steps[:first]), ".".join(steps[first:]).lower()


def _groups(members: Iterator[_Member]) -> Iterator[_Group]:
    """Yield adjacent members of one key together; an error of the tar is raised after the last complete group."""
    group: _Group | None = None
    failure: Exception | None = None
    try:
        for member in members:
            key = _split_name(member.name)[0]
            if group is not None and group.key == key and _is_divided(group):  # do not collect a whole tar
                *complete, last = _divide(group)
                yield from complete
                group.members = last.members
            if group is None or group.key != key:
                if group is not None:
                    yield from _divide(group)
                group = _Group(key)
            group.members.append(member)
    except _TAR_ERRORS as error:
        failure = error
    if group is not None:
        yield from _divide(group)
    if failure is not None:
        raise failure


_PAIR = 2


def _is_divided(group: _Group) -> bool:
    """Return whether the members of a group are records of their own, such as `my.cat.jpg` and `my.dog.jpg`."""
    if any("." not in member.suffix for member in group.members):
        return False
    texts = any(_is_text(member.suffix) for member in group.members)
    return texts or len(group.images) > _PAIR


def _divide(group: _Group) -> list[_Group]:
    """Return the records of a group: itself, or one record for each name without its last suffix."""
    if not _is_divided(group):
        return [group]
    records: dict[str, _Group] = {}
    for member in group.members:
        key = os.path.splitext(member.name)[0]  # noqa: PTH122
        own = replace(member, suffix=suffix_of(member.name)[1:])
        records.setdefault(key, _Group(key)).members.append(own)
    return list(records.values())


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
