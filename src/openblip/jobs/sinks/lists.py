"""Lists: one file with the records of all images, written at the end of the job."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np

from openblip.data.files import require
from openblip.errors import JobError
from openblip.io import jsonlines
from openblip.jobs.files import replace_file
from openblip.jobs.items import Item, item_key
from openblip.jobs.records import Row, column_names, order_fields, pack_embedding, unpack_embedding
from openblip.jobs.sinks.base import BaseSink, SinkOptions, output_file

_DEFAULT_COLUMNS = ["path", "index", "text"]  # of a table without rows


class ListSink(BaseSink[list[Row]]):
    """Rows grouped by item. Existing rows keep their order; new rows follow in the order of the input.

    `existing="append"` and `"prepend"` add an item's new rows after or before its existing rows.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(options)
        self.path = output_file(options, self.suffixes)
        self._rows: dict[str, list[Row]] = {}
        self._changed = False
        if os.path.exists(self.path):  # noqa: PTH110
            try:
                self._rows = _group_by_key(self.load_rows(), options.key_fields)
            except (OSError, ValueError, KeyError) as error:
                raise JobError(f"{self.path} exists and is not a list of results: {error}") from error

    @abstractmethod
    def load_rows(self) -> Iterable[Row]:
        """Return the rows of the existing file, in the form that `normalize` returns.

        Returns:
            The rows of the existing file, in the form that `normalize` returns.
        """

    @abstractmethod
    def save_rows(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        """Write all rows."""

    def normalize(self, row: Row) -> Row:
        """Return a record as `load_rows` would read it back.

        Returns:
            A record as `load_rows` would read it back.
        """
        if "embedding" not in row:
            return dict(row)
        return row | {"embedding": unpack_embedding(row["embedding"]).tolist()}

    @property
    def base(self) -> str:
        """The folder of the file."""
        return os.path.dirname(self.path) or "."  # noqa: PTH120

    @property
    def journal_path(self) -> str:
        """The path of the journal, next to the file."""
        return self.path + ".journal"

    def target(self, item: Item) -> str:
        """Return the location an item is written to."""
        return f"{self.path}: {item.key}"

    def read(self, item: Item) -> list[Row] | None:
        """Return the stored content of an item."""
        return [row for row in self._rows.get(item.key, ()) if self.options.belongs(row)] or None

    def merge(self, item: Item, previous: list[Row] | None, records: Sequence[Row]) -> list[Row] | None:
        """Return the content to store for an item."""
        if previous and all("error" in row for row in records):
            return previous  # a previous result is better than a failure
        existing = self.options.existing
        location = {"path": item.paths_from(self.base), "index": item.index}
        new_rows = [self.normalize(order_fields({**row, **location})) for row in records]
        old_rows = []
        if existing in ("append", "prepend"):
            old_rows = [row for row in previous or () if "error" not in row]
        return [*new_rows, *old_rows] if existing == "prepend" else [*old_rows, *new_rows]

    def write(self, item: Item, content: list[Row]) -> None:
        """Store the content of an item."""
        foreign_rows = [row for row in self._rows.get(item.key, ()) if not self.options.belongs(row)]
        self._rows[item.key] = [*foreign_rows, *content]
        self._changed = True

    def edit_location(self, item: Item) -> tuple[str, str]:
        """Return the file that contains an item's text and the item's key in that file."""
        return os.path.abspath(self.path), item.key  # noqa: PTH100

    def write_edit(self, path: str, key: str, old: str, new: str) -> bool:
        """Replace a stored text that was edited."""
        rows = self._rows.get(key)
        edited = self.apply_edit(rows, old, new)
        if edited is not None and edited != rows:
            self._rows[key] = edited
            self._changed = True
        return edited is not None

    def apply_edit(self, content: list[Row] | None, old: str, new: str) -> list[Row] | None:
        """Return the content with an edit applied."""
        rows = content or []
        texts = [row.get("text") for row in rows]
        if old not in texts:
            return content if new in texts else None
        edited = list(rows)
        index = texts.index(old)
        edited[index] = rows[index] | {"text": new}
        return edited

    def has_result(self, content: list[Row] | None) -> bool:
        """Return whether `existing="skip"` keeps this content."""
        return content is not None and any("error" not in row for row in content)

    def equal(self, left: list[Row] | None, right: list[Row] | None) -> bool:
        """Return whether two contents are equal."""
        return _without_index(left) == _without_index(right)

    def close(self) -> None:
        """Write the file if it has changed."""
        if self._changed or not os.path.exists(self.path):  # noqa: PTH110
            with replace_file(self.path) as file:
                self.save_rows(file, [row for rows in self._rows.values() for row in rows])
        self._changed = False


class JsonlSink(ListSink):
    """One JSON object per record."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def load_rows(self) -> Iterator[Row]:
        """Return the rows of the existing file."""
        with open(self.path, "rb") as file:  # noqa: PTH123
            for line in jsonlines.iter_lines(file):
                row = jsonlines.decode(line.content)
                if not isinstance(row, dict):
                    raise ValueError(f"line {line.number} must be a JSON object")
                yield row

    def save_rows(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        """Write all rows."""
        for row in rows:
            file.write(jsonlines.encode(row))


class CsvSink(ListSink):
    """A table with a header. Lists in cells are JSON; missing values are empty."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    @property
    def _delimiter(self) -> str:
        return "\t" if self.path.lower().endswith(".tsv") else ","

    def normalize(self, row: Row) -> Row:
        """Return a record as `load_rows` would read it back."""
        return {name: _format_cell(value) for name, value in super().normalize(row).items() if value is not None}

    def load_rows(self) -> Iterator[Row]:
        """Return the rows of the existing file."""
        csv.field_size_limit(max(csv.field_size_limit(), 2**27))
        with open(self.path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123
            for row in csv.DictReader(file, delimiter=self._delimiter):
                if None in row:
                    raise ValueError("a row has more fields than the header")
                yield {name: value for name, value in row.items() if value}

    def save_rows(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        """Write all rows."""
        out = io.StringIO(newline="")
        names = column_names(rows) or _DEFAULT_COLUMNS
        writer = csv.DictWriter(out, names, delimiter=self._delimiter, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(out.getvalue().encode("utf-8", "backslashreplace"))


class ParquetSink(ListSink):
    """A Parquet file. Embeddings are lists of float32."""

    name = "parquet"
    suffixes = (".parquet",)

    def __init__(self, options: SinkOptions) -> None:
        require("pyarrow.parquet", "writing Parquet")
        super().__init__(options)

    def load_rows(self) -> list[Row]:
        """Return the rows of the existing file."""
        try:
            rows = require("pyarrow.parquet", "reading Parquet").read_table(self.path).to_pylist()
        except require("pyarrow", "reading Parquet").ArrowException as error:
            raise ValueError(str(error)) from error
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def save_rows(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        """Write all rows."""
        pa = require("pyarrow", "writing Parquet")
        arrays = {}
        try:
            for name in column_names(rows) or _DEFAULT_COLUMNS:
                dtype = pa.list_(pa.float32()) if name == "embedding" else None
                arrays[name] = pa.array([row.get(name) for row in rows], dtype)
            require("pyarrow.parquet", "writing Parquet").write_table(pa.table(arrays), file)
        except pa.ArrowException as error:
            raise JobError(f"the rows of {self.path} do not fit into one table: {error}") from error


class NpySink(ListSink):
    """Embeddings as one float32 array (N, E), and a JSON Lines file that describes its rows."""

    name = "npy"
    suffixes = (".npy",)

    @property
    def rows_path(self) -> str:
        """The list of `row`, `path`, `index` and `model` of each array row, then of failures without a row."""
        return self.path.removesuffix(".npy") + ".rows.jsonl"

    def normalize(self, row: Row) -> Row:
        """Return a record as `load_rows` would read it back."""
        return dict(row)

    def load_rows(self) -> Iterator[Row]:
        """Return the rows of the existing file."""
        table = np.load(self.path, allow_pickle=False)
        rows = list(jsonlines.read(self.rows_path))
        if sum("row" in row for row in rows) != len(table):
            raise ValueError(f"{self.rows_path} does not list its {len(table)} rows")
        for row in rows:
            embedding = {"embedding": pack_embedding(table[row.pop("row")])} if "row" in row else {}
            yield embedding | row

    def save_rows(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        """Write all rows."""
        embedded = [row for row in rows if "embedding" in row]
        failed = [row for row in rows if "embedding" not in row]
        with replace_file(self.rows_path) as listing:
            for number, row in enumerate(embedded):
                fields = {name: value for name, value in row.items() if name != "embedding"}
                listing.write(jsonlines.encode({"row": number} | fields))
            for row in failed:
                listing.write(jsonlines.encode(row))
        if embedded:
            table = np.stack([unpack_embedding(row["embedding"]) for row in embedded])
        else:
            table = np.empty((0, 0), np.float32)
        np.save(file, table)

    def equal(self, left: list[Row] | None, right: list[Row] | None) -> bool:
        """Return whether two contents are equal."""
        return super().equal(_sort_fields(left), _sort_fields(right))


def _group_by_key(rows: Iterable[Row], key_fields: Sequence[str]) -> dict[str, list[Row]]:
    """Return rows by item key: the path and the values of `key_fields`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = item_key(_parse_path(row.get("path", "")), {name: row[name] for name in key_fields if row.get(name)})
        groups.setdefault(key, []).append(row)
    return groups


def _parse_path(value: Any) -> str | list[str]:
    """Return the path of a row, or both paths of a pair, which CSV stores as JSON."""
    if isinstance(value, str) and value.startswith('["'):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return list(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _without_index(rows: list[Row] | None) -> list[Row] | None:
    if rows is None:
        return None
    return [{name: value for name, value in row.items() if name != "index"} for row in rows]


def _sort_fields(rows: list[Row] | None) -> list[Row] | None:
    return None if rows is None else [dict(sorted(row.items())) for row in rows]


def _format_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, Mapping)):
        return jsonlines.dumps(value)
    return str(value)
