"""Lists: one file with the records of all pictures, written as a whole when the job is through."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, ClassVar

import numpy as np

from openblip.data.records import need
from openblip.errors import JobError
from openblip.jobs.files import replacing
from openblip.jobs.items import Item, keyed
from openblip.jobs.records import Row, columns, ordered, pack, unpack
from openblip.jobs.sinks.base import Sink, Writing, file_named


class ListSink(Sink):
    """Rows by picture. Those that are there stay where they are, new ones follow in the order of the input.

    ``existing="append"`` and ``"prepend"`` put the new rows of a picture after or before those it has.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, writing: Writing) -> None:
        super().__init__(writing)
        self.path = file_named(writing, self.suffixes)
        self._rows: dict[str, list[Row]] = {}
        self._changed = False
        if os.path.exists(self.path):  # noqa: PTH110
            try:
                self._rows = _by_key(self.load(), writing.asked)
            except (OSError, ValueError, KeyError) as error:
                raise JobError(f"{self.path} is there, but no list of results: {error}") from error

    @abstractmethod
    def load(self) -> Iterable[Row]:
        """The rows of the file that is there, as :meth:`normal` would have them."""

    @abstractmethod
    def save(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        """Write all rows."""

    def normal(self, row: Row) -> Row:
        """A record as this format gives it back."""
        return _with_embedding(row, lambda text: unpack(text).tolist())

    @property
    def base(self) -> str:
        return os.path.dirname(self.path) or "."  # noqa: PTH120

    @property
    def journal(self) -> str:
        return self.path + ".journal"

    def target(self, item: Item) -> str:
        return f"{self.path}: {item.key}"

    def current(self, item: Item) -> Any:
        return [row for row in self._rows.get(item.key, ()) if self.writing.concerns(row)] or None

    def content(self, item: Item, before: Any, records: Sequence[Row]) -> Any:
        told = {"path": item.path(self.base), "index": item.index}
        new = [self.normal(ordered({**row, **told})) for row in records]
        old = [row for row in before or () if "error" not in row and self.writing.existing in ("append", "prepend")]
        if before and all("error" in row for row in records):
            return before  # what was there is better than a failure
        return [*new, *old] if self.writing.existing == "prepend" else [*old, *new]

    def put(self, item: Item, content: Any) -> None:
        others = [row for row in self._rows.get(item.key, ()) if not self.writing.concerns(row)]
        self._rows[item.key] = [*others, *content]
        self._changed = True

    def spot(self, item: Item) -> tuple[str, str]:
        return os.path.abspath(self.path), item.key  # noqa: PTH100

    def edit(self, place: str, key: str, was: str, text: str) -> bool:
        rows = self._rows.get(key)
        new = self.edited(rows, was, text)
        if new not in (None, rows):
            self._rows[key] = new
            self._changed = True
        return new is not None

    def edited(self, content: Any, was: str, text: str) -> Any:
        told = [row.get("text") for row in content or ()]
        if was not in told:
            return content if text in told else None
        at = told.index(was)
        return [*content[:at], content[at] | {"text": text}, *content[at + 1 :]]

    def taken(self, content: Any) -> bool:
        return content is not None and any("error" not in row for row in content)

    def same(self, one: Any, other: Any) -> bool:
        return _without_index(one) == _without_index(other)

    def close(self) -> None:
        if self._changed or not os.path.exists(self.path):  # noqa: PTH110
            with replacing(self.path) as file:
                self.save(file, [row for rows in self._rows.values() for row in rows])
        self._changed = False


class Jsonl(ListSink):
    """One JSON object for each record."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def load(self) -> Iterable[Row]:
        with open(self.path, "rb") as file:  # noqa: PTH123
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line.decode("utf-8-sig"))
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield row

    def save(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


class Csv(ListSink):
    """A table with a header; a list in a cell is JSON, and what is missing is empty."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    @property
    def _delimiter(self) -> str:
        return "\t" if self.path.lower().endswith(".tsv") else ","

    def normal(self, row: Row) -> Row:
        return {name: _cell(value) for name, value in super().normal(row).items() if value is not None}

    def load(self) -> Iterable[Row]:
        csv.field_size_limit(max(csv.field_size_limit(), 2**27))
        with open(self.path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123
            for row in csv.DictReader(file, delimiter=self._delimiter):
                if None in row:
                    raise ValueError("a row has more fields than the header")
                yield {name: value for name, value in row.items() if value}

    def save(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        out = io.StringIO(newline="")
        names = columns(rows) or ["path", "index", "text"]
        writer = csv.DictWriter(out, names, delimiter=self._delimiter, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(out.getvalue().encode("utf-8", "backslashreplace"))


class Parquet(ListSink):
    """A Parquet file; an embedding is a list of float32."""

    name = "parquet"
    suffixes = (".parquet",)

    def __init__(self, writing: Writing) -> None:
        need("pyarrow.parquet", "writing Parquet")
        super().__init__(writing)

    def load(self) -> Iterable[Row]:
        try:
            rows = need("pyarrow.parquet", "reading Parquet").read_table(self.path).to_pylist()
        except need("pyarrow", "reading Parquet").ArrowException as error:
            raise ValueError(str(error)) from error
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def save(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        pa = need("pyarrow", "writing Parquet")
        names = columns(rows) or ["path", "index", "text"]
        try:
            arrays = {
                name: pa.array([row.get(name) for row in rows], pa.list_(pa.float32()) if name == "embedding" else None)
                for name in names
            }
            need("pyarrow.parquet", "writing Parquet").write_table(pa.table(arrays), file)
        except pa.ArrowException as error:
            raise JobError(f"the rows of {self.path} do not fit into one table: {error}") from error


class Npy(ListSink):
    """Embeddings as one array (N, E), float32, and beside it the pictures of its rows, one JSON object each."""

    name = "npy"
    suffixes = (".npy",)

    @property
    def rows_path(self) -> str:
        """The list of the array's rows: ``row``, ``path``, ``index`` and ``model``; failures follow without a row."""
        return self.path.removesuffix(".npy") + ".rows.jsonl"

    def normal(self, row: Row) -> Row:
        return dict(row)

    def load(self) -> Iterable[Row]:
        table = np.load(self.path, allow_pickle=False)
        with open(self.rows_path, "rb") as file:  # noqa: PTH123
            rows = [json.loads(line) for line in file]
        if sum("row" in row for row in rows) != len(table):
            raise ValueError(f"{self.rows_path} does not list its {len(table)} rows")
        for row in rows:
            yield ({"embedding": pack(table[row.pop("row")])} if "row" in row else {}) | row

    def save(self, file: IO[bytes], rows: Sequence[Row]) -> None:
        good = [row for row in rows if "embedding" in row]
        bad = [row for row in rows if "embedding" not in row]
        with replacing(self.rows_path) as listing:
            for number, row in enumerate(good):
                told = {"row": number} | {name: value for name, value in row.items() if name != "embedding"}
                listing.write(json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            for row in bad:
                listing.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        table = np.stack([unpack(row["embedding"]) for row in good]) if good else np.empty((0, 0), np.float32)
        np.save(file, table)

    def same(self, one: Any, other: Any) -> bool:
        return _sorted(one) == _sorted(other)


def _by_key(rows: Iterable[Row], asked: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by the key of their item: its path, and what was ``asked`` of it alone."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        key = keyed(_path(row.get("path", "")), {name: row[name] for name in asked if row.get(name)})
        found.setdefault(key, []).append(row)
    return found


def _path(told: Any) -> str | list[str]:
    """The path in a row, or both of a pair, which CSV holds as JSON."""
    if isinstance(told, str) and told.startswith('["'):
        with contextlib.suppress(ValueError):
            told = json.loads(told)
    return list(map(str, told)) if isinstance(told, (list, tuple)) else str(told)


def _with_embedding(row: Row, change: Callable[[str], Any]) -> Row:
    return row | {"embedding": change(row["embedding"])} if "embedding" in row else dict(row)


def _without_index(rows: Any) -> Any:
    return rows and [{name: value for name, value in row.items() if name != "index"} for row in rows]


def _sorted(rows: Any) -> Any:
    return rows and [dict(sorted(row.items())) for row in _without_index(rows)]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, Mapping)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
