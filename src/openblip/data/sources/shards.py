"""Data as shards that separate processes read: a plan of small, picklable shards, and a reader of one (no torch).

Every shard is read in sequence with bounded memory. Its name and its content do not depend on the other shards.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from openblip.data.files import is_local, open_remote, parent, require
from openblip.data.images import Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns, check_columns
from openblip.data.skips import Skips
from openblip.data.sources import open_source
from openblip.data.sources.addresses import HUB_PREFIX, Kind, expand, kind_of
from openblip.data.sources.base import Source
from openblip.data.sources.folder import METADATA, is_taken, read_image, walk
from openblip.data.sources.parquet import read_row_groups
from openblip.data.sources.table import read_record
from openblip.data.sources.tars import TarStream
from openblip.data.sources.text import decode_csv_row, find_delimiter, is_csv, is_jsonl, iter_cells
from openblip.errors import InputError
from openblip.io import jsonlines
from openblip.preprocess.formats import is_image_name

SHARD_ROWS = 1000
ShardKind: TypeAlias = Literal["tar", "parquet", "jsonl", "csv", "files", "indexed"]


@dataclass(frozen=True)
class Shard:
    """A part of some data: a tar, row groups of a Parquet file, lines of a text file, or some image files.

    Attributes:
        name: Name, unique among the shards of a plan, which can be part of a file name.
        kind: How the shard is read.
        address: The file, or the folder of the image files.
        start: First byte ("jsonl", "csv"), row group ("parquet") or record ("indexed").
        stop: End of the shard in the same unit; -1 for the end of the file.
        row: Number of the first row in the file: from 1 for lines, from 0 otherwise.
        files: Paths of the image files below the folder.
        root: Folder for the relative image paths of rows.
    """

    name: str
    kind: ShardKind
    address: str
    start: int = 0
    stop: int = -1
    row: int = 0
    files: tuple[str, ...] = ()
    root: str = ""

    def to_dict(self) -> dict[str, str | int | list[str]]:
        """Return the fields as JSON stores them."""
        return {**asdict(self), "files": list(self.files)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Shard:
        """Return the shard that `to_dict` stored."""
        return Shard(**{**values, "files": tuple(values["files"])})


def plan_shards(
    sources: Sequence[str],
    *,
    images: str | None = None,
    rows: int = SHARD_ROWS,
    sidecars: bool = True,
    recursive: bool = True,
    columns: Columns | None = None,
    skips: Skips | None = None,
) -> list[Shard]:
    """Divide data into shards.

    A tar is one shard. Parquet files are divided at row groups, text files at lines, folders of images by their sorted
    names, into shards of about `rows` rows. Other forms, and text files in dialects that can only be read as a whole,
    are indexed by every process that reads a shard.

    Args:
        sources: Paths or addresses, as [`open_source`][openblip.data.sources.open_source] takes them, or image files.
        images: Folder for relative image paths of rows; by default the folder of the file.
        rows: Rows of a shard.
        sidecars: Whether a folder is read with its metadata, if it has any; otherwise all its images are taken.
        recursive: Include the files below a folder.
        columns: The column of a field, where it differs from the schema.
        skips: Counts the files that folders pass over.

    Returns:
        The shards, in the order of the data.

    Raises:
        InputError: A source does not exist or has an unknown form, or a file cannot be read.
    """
    check_columns(columns or {})
    planner = _Planner(images, rows, sidecars, recursive, columns, Skips() if skips is None else skips)
    shards: list[Shard] = []
    single_files = [name for name in sources if _is_image(name)]
    if single_files:
        shards += planner.split_files("", single_files)
    for source in sources:
        if not _is_image(source):
            shards += planner.plan(source)
    if not shards:
        raise InputError(f"{', '.join(sources)} has no data")
    repeated = [shard.name for shard in shards]
    if len(set(repeated)) < len(repeated):
        name = next(name for name in repeated if repeated.count(name) > 1)
        raise InputError(f"the same data is named twice: {next(s.address for s in shards if s.name == name)}")
    return shards


def read_shard(
    shard: Shard, *, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Iterator[tuple[str, Record | Problem]]:
    """Yield the records of a shard, each with its key.

    A key names the image independently of where the data is stored: the path that a row or folder has for the image, or
    `file:member` for an image inside a file.

    Args:
        shard: The shard.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep in `Record.extra`.

    Yields:
        Key and record; a `Problem` takes the place of a record that cannot be read. Errors that end the shard early,
        such as a file that vanished, are yielded as a problem whose key is the name of the shard.
    """
    check_columns(columns or {})
    try:
        for record in _READERS[shard.kind](shard, columns, tuple(keep)):
            if isinstance(record, Problem) and record.kind:
                continue  # files of other kinds, which are passed over
            address = record.address
            at_shard = isinstance(record, Problem) and address == shard.address
            yield (shard.name if at_shard else _key(shard, record)), record
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield shard.name, Problem(shard.address, f"cannot read {shard.address}: {reason}")


def _is_image(source: str) -> bool:
    return is_image_name(source) and not any(c in source for c in "*?{")


def _key(shard: Shard, record: Record | Problem) -> str:
    """Return the key of a record."""
    if isinstance(record, Problem):
        return _below(record.address, shard.address if shard.kind == "files" else parent(shard.address))
    image = record.images[0].address
    if image.startswith(f"{shard.address}:"):  # inside the shard's file: named by its record
        return _below(record.address, parent(shard.address))
    return _below(image, shard.address if shard.kind == "files" else shard.root)


def _below(address: str, root: str) -> str:
    return address.removeprefix(root.rstrip("/") + "/") if root else address


@dataclass(frozen=True)
class _Planner:
    """Divides data into shards with the options of one call of `plan_shards`."""

    images: str | None
    rows: int
    sidecars: bool
    recursive: bool
    columns: Columns | None
    skips: Skips

    def plan(self, source: str) -> list[Shard]:
        """Return the shards of a file, folder, glob or dataset."""
        if source.startswith(HUB_PREFIX):
            return self._split_indexed(source)
        if is_local(source) and Path(source).is_dir():
            return self._plan_folder(source)
        shards = []
        for path in expand(source):
            kind = kind_of(path)
            if kind is None and not _is_image(path):
                raise InputError(f"the form of {path} cannot be guessed by its suffix")
            shards += self.split_files("", [path]) if kind is None else self._plan_file(path, kind)
        return shards

    def _plan_folder(self, folder: str) -> list[Shard]:
        names = list(walk(folder, self.recursive, skips=self.skips))
        metadata = [name for name in names if os.path.basename(name) in METADATA]  # noqa: PTH119
        if metadata and self.sidecars:
            return [shard for name in metadata for shard in self._plan_file(name, kind_of(name) or "jsonl")]
        pictures = [name for name in names if is_taken(name, None, self.skips)]
        if pictures:
            return self.split_files(folder, pictures)
        for kind in ("tar", "parquet"):
            files = [name for name in names if kind_of(name) == kind]
            if files:
                return [shard for name in files for shard in self._plan_file(name, kind_of(name) or "tar")]
        if (Path(folder) / "dataset_dict.json").exists() or (Path(folder) / "state.json").exists():
            return self._split_indexed(folder)
        raise InputError(f"{folder} has no images, tars or Parquet files")

    def _plan_file(self, path: str, kind: Kind) -> list[Shard]:
        root = parent(path) if self.images is None else self.images
        try:
            if kind == "tar":
                return [Shard(_name(path), "tar", path, root=root)]
            if kind == "parquet":
                return list(_split_parquet(path, root, self.rows))
            if kind in ("jsonl", "csv") and _can_start_anywhere(path, kind, self.columns):
                split = _split_jsonl if kind == "jsonl" else _split_csv
                return list(split(path, root, self.rows))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        return self._split_indexed(path)

    def split_files(self, folder: str, names: Sequence[str]) -> list[Shard]:
        """Return the shards of image files below a folder."""
        prefix = folder.rstrip("/") + "/" if folder else ""
        files = [name.removeprefix(prefix) for name in names]
        return [
            Shard(_name(folder or files[row], row), "files", folder, row=row, files=tuple(files[row : row + self.rows]))
            for row in range(0, len(files), self.rows)
        ]

    def _split_indexed(self, address: str) -> list[Shard]:
        root = "" if self.images is None else self.images
        count = len(_open_indexed(address, root, _modified(address), _freeze(self.columns)))
        starts = range(0, count, self.rows)
        return [
            Shard(_name(address, i), "indexed", address, i, min(i + self.rows, count), i, root=root) for i in starts
        ]


def _can_start_anywhere(path: str, kind: Kind, columns: Columns | None) -> bool:
    """Return whether a text file can be read from any of its lines on."""
    with closing(_open(path)) as file:
        head = file.readline() + file.read(2**16)
    return is_jsonl(head) if kind == "jsonl" else is_csv(path, head, columns or {})


def _name(path: str, row: int | None = None) -> str:
    """Return the name of a shard: the file's name, a hash of its complete address, and the number of its first row."""
    stem = re.sub(r"[^\w.-]+", "_", os.path.basename(path.rstrip("/")).partition(".")[0])[:80]  # noqa: PTH119
    address = os.path.abspath(path) if is_local(path) and not path.startswith(HUB_PREFIX) else path  # noqa: PTH100
    digest = hashlib.blake2b(os.fsencode(address), digest_size=4).hexdigest()
    return f"{stem or 'images'}-{digest}" + ("" if row is None else f"-{row:09d}")


def _split_parquet(path: str, root: str, rows: int) -> Iterator[Shard]:
    metadata = require("pyarrow.parquet", "reading Parquet").read_metadata(
        path if is_local(path) else open_remote(path)
    )
    start = first_row = row = 0
    for group in range(metadata.num_row_groups):
        row += metadata.row_group(group).num_rows
        if row - first_row >= rows or group + 1 == metadata.num_row_groups:
            yield Shard(_name(path, first_row), "parquet", path, start, group + 1, first_row, root=root)
            start, first_row = group + 1, row


def _split_jsonl(path: str, root: str, rows: int) -> Iterator[Shard]:
    start, first_line, count, end, number = 0, 1, 0, 0, 0
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            end += len(line)
            count += bool(line.strip())
            if count == rows:
                yield Shard(_name(path, first_line), "jsonl", path, start, end, first_line, root=root)
                start, first_line, count = end, number + 1, 0
    if count:
        yield Shard(_name(path, first_line), "jsonl", path, start, end, first_line, root=root)


def _split_csv(path: str, root: str, rows: int) -> Iterator[Shard]:
    with _open(path) as file:
        lines = _CountedLines(file)
        reader = _csv_reader(path, lines)
        next(reader, None)
        start, first_line, count = lines.end, reader.line_num + 1, 0
        for cells in reader:
            count += bool(cells)
            if count == rows:
                yield Shard(_name(path, first_line), "csv", path, start, lines.end, first_line, root=root)
                start, first_line, count = lines.end, reader.line_num + 1, 0
        if count:
            yield Shard(_name(path, first_line), "csv", path, start, lines.end, first_line, root=root)


class _CountedLines:
    """The lines of a text file, decoded, up to a position in bytes; undecodable bytes become surrogates."""

    def __init__(self, file: IO[bytes], stop: int = -1) -> None:
        self.end = file.tell() if file.seekable() else 0
        self._file, self._stop = file, math.inf if stop < 0 else stop

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = b"" if self.end >= self._stop else self._file.readline()
        if not line:
            raise StopIteration
        text = line.decode("utf-8-sig" if self.end == 0 else "utf-8", "surrogateescape").replace("\0", "\ufffd")
        self.end += len(line)
        return text


def _csv_reader(path: str, lines: Iterable[str]) -> Any:
    return csv.reader(lines, delimiter=_find_delimiter(path), skipinitialspace=True)


def _find_delimiter(path: str) -> str:
    """Return the delimiter of a table."""
    csv.field_size_limit(max(csv.field_size_limit(), 2**27))
    with closing(_open(path)) as file:
        head = file.read(2**16).decode("utf-8-sig", "replace")
    return find_delimiter(path, head)[0]


def _open(path: str) -> IO[bytes]:
    file: IO[bytes] = Path(path).open("rb") if is_local(path) else open_remote(path)  # noqa: SIM115
    return file


def _freeze(columns: Columns | None) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """Return columns in a hashable form."""
    return tuple((field, name if isinstance(name, str) else tuple(name)) for field, name in (columns or {}).items())


def _modified(address: str) -> int:
    """Return the time of the last change of a local file, so that an old index is not used for it."""
    path = Path(address)
    return path.stat().st_mtime_ns if is_local(address) and path.exists() else 0


@functools.lru_cache(maxsize=2)
def _open_indexed(
    address: str, root: str, modified: int, columns: tuple[tuple[str, Any], ...] = (), keep: tuple[str, ...] = ()
) -> Source:
    source = open_source(address, images=root or None, columns=dict(columns), keep=keep, stream=False)
    if not isinstance(source, Source):
        raise InputError(f"{address} cannot be divided into shards")
    return source


Entries: TypeAlias = Iterator["Record | Problem"]


def _read_tar(shard: Shard, columns: Columns | None, keep: tuple[str, ...]) -> Entries:
    return TarStream([shard.address], columns=columns, keep=keep).read(0)


def _read_parquet(shard: Shard, columns: Columns | None, keep: tuple[str, ...]) -> Entries:
    groups = range(shard.start, shard.stop)
    return read_row_groups(shard.address, shard.root, columns, keep, groups=groups, first_row=shard.row)


def _read_jsonl(shard: Shard, columns: Columns | None, keep: tuple[str, ...]) -> Entries:
    locate = Locator(shard.root)
    with closing(_open(shard.address)) as file:
        file.seek(shard.start)
        position, number = shard.start, shard.row - 1
        while position < shard.stop and (line := file.readline()):
            position, number = position + len(line), number + 1
            content = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not content:
                continue
            address = f"{shard.address}:{number}"
            try:
                row = jsonlines.decode(content)
            except UnicodeDecodeError:
                yield Problem(address, "the line is not UTF-8")
            except ValueError as error:
                yield Problem(address, f"the line is not JSON ({error})")
            else:
                yield read_record(row, address, shard.address, locate, columns=columns, keep=keep)
        if position < shard.stop:
            raise InputError("the file is shorter than when it was planned")


def _read_csv(shard: Shard, columns: Columns | None, keep: tuple[str, ...]) -> Entries:
    locate = Locator(shard.root)
    with closing(_open(shard.address)) as file:
        header: list[str] = next(_csv_reader(shard.address, _CountedLines(file)), [])
        file.seek(shard.start)
        for line, cells in iter_cells(_CountedLines(file, shard.stop), _find_delimiter(shard.address)):
            if not cells:
                continue
            address = f"{shard.address}:{shard.row - 1 + line}"
            row = cells if isinstance(cells, str) else decode_csv_row(header, cells)
            if isinstance(row, str):
                yield Problem(address, row)
            else:
                yield read_record(row, address, shard.address, locate, columns=columns, keep=keep)


def _read_files(shard: Shard, columns: Columns | None, keep: tuple[str, ...]) -> Entries:
    for name in shard.files:
        yield read_image(os.path.join(shard.address, name))  # noqa: PTH118


def _read_indexed(shard: Shard, columns: Columns | None, keep: tuple[str, ...]) -> Entries:
    source = _open_indexed(shard.address, shard.root, _modified(shard.address), _freeze(columns), keep)
    if shard.start == 0:
        yield from source.problems
    for index in range(shard.start, min(shard.stop, len(source))):
        yield source[index]


_READERS = {
    "tar": _read_tar,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "files": _read_files,
    "indexed": _read_indexed,
}

__all__ = ["SHARD_ROWS", "Shard", "ShardKind", "plan_shards", "read_shard"]
