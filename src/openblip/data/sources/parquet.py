"""Parquet files: images by path, or embedded as bytes as on the Hugging Face hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openblip.data.files import is_local, open_remote, parent, require
from openblip.data.images import ImageRef, Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import IMAGE_COLUMNS, Columns
from openblip.data.sources.base import Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import ImageError, InputError, OpenBlipError

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

BATCH_ROWS = 1000


def open_parquet(
    path: str, *, images: str | None = None, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Table:
    """Open a Parquet file, with a record per row; a record's address is `path:row 17`, counted from 0.

    Embedded images stay in the file. Reading one costs reading its row group, of which each process keeps a few, so
    stream a file with large row groups.

    Args:
        path: The file, local or remote.
        images: Folder for relative image paths; by default the folder of the file.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.

    Returns:
        The records of the file.

    Raises:
        InputError: If the file cannot be read.
    """
    file = _open(path)
    embedded = _embedded_columns(file.schema_arrow, columns)
    text_columns = [name for name in file.schema_arrow.names if name not in embedded]
    locate = _CellLocator(path, Locator(parent(path) if images is None else images, search=images is not None))
    builder = TableBuilder(path, locate, _without_images(columns, embedded), keep)
    row_number = 0
    for group in range(file.num_row_groups):
        start = row_number
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=text_columns):
            for row in batch.to_pylist() if text_columns else [{}] * batch.num_rows:
                cells = [(group, row_number - start, name) for name in embedded]
                builder.add(f":row {row_number}", row, cells or None)
                row_number += 1
    return builder.build()


class ParquetStream(Stream):
    """Parquet files read in sequence, local or at any fsspec address; each file is a shard."""

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
        """Yield the records of one file, with embedded images in memory."""
        path = self.paths[shard]
        try:
            yield from read_row_groups(path, self._images, self._columns, self._keep)
        except OpenBlipError as error:
            yield Problem(path, str(error))


def read_row_groups(
    path: str,
    images: str | None,
    columns: Columns | None,
    keep: Sequence[str],
    *,
    groups: Sequence[int] | None = None,
    first_row: int = 0,
) -> Iterator[Record | Problem]:
    """Yield the records of some row groups of a Parquet file, with embedded images in memory.

    Args:
        path: The file, local or remote.
        images: Folder for relative image paths; by default the folder of the file.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.
        groups: Row groups to read; all by default.
        first_row: Number of the first row of these groups in the file.

    Yields:
        The records, with a `Problem` in place of each row that cannot become one.

    Raises:
        InputError: If the file cannot be read.
    """
    file = _open(path)
    embedded = _embedded_columns(file.schema_arrow, columns)
    columns = _without_images(columns, embedded)
    locate = Locator(parent(path) if images is None else images, search=images is not None)
    number = first_row
    for batch in file.iter_batches(BATCH_ROWS, row_groups=None if groups is None else list(groups)):
        for row in batch.to_pylist():
            address = f"{path}:row {number}"
            values = [row[name] for name in embedded] or None
            yield read_record(row, address, path, locate, images=values, columns=columns, keep=keep)
            number += 1


@dataclass(frozen=True)
class CellImage:
    """An image embedded in a Parquet file; `row` counts within the row group."""

    path: str
    group: int
    row: int
    column: str
    address: str
    locate: Locator

    def read(self) -> ImageSource:
        """Return the value of the cell."""
        cell = _read_row_group(self.path, self.group, self.column)[self.row]
        return self.locate(cell.as_py(), self.address).read()


class _CellLocator:
    """Makes references of (group, row, column) triples, and of values as `Locator` does."""

    def __init__(self, path: str, locate: Locator) -> None:
        self.path, self.locate = path, locate

    def __call__(self, value: Any, address: str) -> ImageRef:
        if not isinstance(value, tuple):
            return self.locate(value, address)
        group, row, column = value
        return CellImage(self.path, group, row, column, f"{address}/{column}", self.locate)


def _open(path: str) -> Any:
    pq = require("pyarrow.parquet", "reading Parquet")
    try:
        return pq.ParquetFile(path if is_local(path) else open_remote(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except require("pyarrow", "reading Parquet").ArrowException as error:
        raise InputError(f"{path} is not a Parquet file, or damaged: {error}") from error


@functools.lru_cache(maxsize=8)
def _read_row_group(path: str, group: int, column: str) -> Any:
    try:
        return _open(path).read_row_group(group, columns=[column]).column(column)
    except Exception as error:  # pyarrow's errors have no other common base
        raise ImageError(f"cannot read the row group: {error}") from error


def _embedded_columns(schema: Any, columns: Columns | None) -> list[str]:
    """Return the columns that hold images rather than their names: binary, or {"bytes", "path"}."""
    mapped = (columns or {}).get("image", IMAGE_COLUMNS)
    names = [mapped] if isinstance(mapped, str) else list(mapped)
    embedded = [name for name in names if name in schema.names and _holds_bytes(schema.field(name).type)]
    return embedded if columns and "image" in columns else embedded[:1]


def _holds_bytes(dtype: Any) -> bool:
    types = require("pyarrow", "reading Parquet").types
    if types.is_struct(dtype):
        return any(dtype.field(i).name == "bytes" for i in range(dtype.num_fields))
    return bool(types.is_binary(dtype) or types.is_large_binary(dtype))


def _without_images(columns: Columns | None, embedded: Sequence[str]) -> Columns | None:
    """Return the column mapping without images, if these are read separately."""
    return {key: name for key, name in (columns or {}).items() if key != "image"} if embedded else columns
