"""Parquet files: pictures by path, or embedded as bytes in the way of the Hugging Face hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openblip.data.files import is_local, parent, remote, require
from openblip.data.images import ImageRef, Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import PICTURE, Columns
from openblip.data.sources.base import Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import ImageError, InputError, OpenBlipError

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

ROWS_AT_ONCE = 1000


def open_parquet(
    path: str, *, images: str | None = None, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Table:
    """A record for each row; its address is ``path:row 17``, counted from 0.

    Embedded pictures stay in the file. One of them costs reading its row group, of which each process keeps a few: a
    file with large row groups is better streamed.
    """
    file = _open(path)
    embedded = _embedded(file.schema_arrow, columns)
    root = Locator(parent(path) if images is None else images)
    texts = [name for name in file.schema_arrow.names if name not in embedded]
    builder = TableBuilder(path, _Cell(path, root), _without(columns, embedded), keep)
    row = 0
    for group in range(file.num_row_groups):
        last = row + file.metadata.row_group(group).num_rows
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=texts):
            rows = batch.to_pylist() if texts else [{}] * batch.num_rows
            for number, content in enumerate(rows, start=row):
                at = number - last + file.metadata.row_group(group).num_rows
                builder.add(f":row {number}", content, [(group, at, name) for name in embedded] or None)
            row += len(rows)
    return builder.build()


class ParquetStream(Stream):
    """Parquet files read from end to end, row group by row group, local or at any fsspec address; each is a shard."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        images: str | None = None,
        columns: Columns | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        self.paths = tuple(paths)
        self.shards = len(paths)
        self.name = paths[0] if len(paths) == 1 else f"{len(paths)} Parquet files from {paths[0]}"
        self._images, self._columns, self._keep = images, columns, keep

    def read(self, shard: int) -> Iterator[Record | Problem]:
        """The records of one file, with embedded pictures in memory."""
        path = self.paths[shard]
        try:
            file = _open(path)
        except OpenBlipError as error:
            yield Problem(path, str(error))
            return
        embedded = _embedded(file.schema_arrow, self._columns)
        columns = _without(self._columns, embedded)
        root = Locator(parent(path) if self._images is None else self._images)
        number = 0
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                address = f"{path}:row {number}"
                refs = [row[name] for name in embedded] or None
                yield read_record(row, address, path, root, refs=refs, columns=columns, keep=self._keep)
                number += 1


@dataclass(frozen=True)
class CellImage:
    """A picture embedded in a row of a Parquet file."""

    path: str
    group: int
    row: int  # in the group
    column: str
    address: str
    root: Locator

    def read(self) -> ImageSource:
        return self.root(_row_group(self.path, self.group, self.column)[self.row].as_py(), self.address).read()


class _Cell:
    def __init__(self, path: str, root: Locator) -> None:
        self.path, self.root = path, root

    def __call__(self, ref: Any, address: str) -> ImageRef:
        if not isinstance(ref, tuple):
            return self.root(ref, address)
        group, row, column = ref
        return CellImage(self.path, group, row, column, f"{address}/{column}", self.root)


def _open(path: str) -> Any:
    pq = require("pyarrow.parquet", "reading Parquet")
    try:
        return pq.ParquetFile(path if is_local(path) else remote(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except require("pyarrow", "reading Parquet").ArrowException as error:
        raise InputError(f"{path} is not a Parquet file, or damaged: {error}") from error


@functools.lru_cache(maxsize=8)
def _row_group(path: str, group: int, column: str) -> Any:
    try:
        return _open(path).read_row_group(group, columns=[column]).column(column)
    except Exception as error:  # pyarrow's errors have no other common base
        raise ImageError(f"cannot read the row group: {error}") from error


def _embedded(schema: Any, columns: Columns | None) -> list[str]:
    """The columns that hold pictures rather than their names: binary, or {"bytes", "path"}."""
    wanted = (columns or {}).get("image", PICTURE)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    found = [name for name in names if name in schema.names and _holds_bytes(schema.field(name).type)]
    return found if columns and "image" in columns else found[:1]


def _holds_bytes(kind: Any) -> bool:
    types = require("pyarrow", "reading Parquet").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _without(columns: Columns | None, embedded: Sequence[str]) -> Columns | None:
    """The columns that :func:`~openblip.data.schema.parse` is to look for, once the pictures have been taken out."""
    return {key: name for key, name in (columns or {}).items() if key != "image"} if embedded else columns
