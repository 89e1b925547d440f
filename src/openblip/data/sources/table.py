"""Records in memory, packed into one array of bytes (no torch).

Millions of records take little memory this way, and worker processes share them.
"""

from __future__ import annotations

import hashlib
import pickle
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.data.images import ImageRef
from openblip.data.problems import Problem
from openblip.data.records import Expression, Question, Record
from openblip.data.schema import IMAGE_COLUMNS, PAIR_COLUMNS, Columns, ParsedRow, parse_row, plain_name
from openblip.data.skips import Skips
from openblip.data.sources.base import Counts, Source, check_index
from openblip.errors import InputError, OpenBlipError

Locate: TypeAlias = Callable[[Any, str], ImageRef]


class Table(Source):
    """Packed records. `TableBuilder` makes one.

    Args:
        name: Where the records come from.
        locate: Makes an image reference of a value in a row and the record's address.
        packed: Bytes of all records, and the end of each record in them.
        counts: `Record.counts` of every record.
        keys: A hash of each record's image.
        problems: The rows that could not become records.
        skips: The files that were passed over.
    """

    def __init__(
        self,
        name: str,
        locate: Locate,
        packed: tuple[NDArray[np.uint8], NDArray[np.int64]],
        counts: Counts,
        keys: NDArray[np.uint64],
        problems: Sequence[Problem] = (),
        skips: Skips | None = None,
    ) -> None:
        self.name = name
        self.problems = tuple(problems)
        self.skips = Skips() if skips is None else skips
        self._locate = locate
        self._bytes, self._ends = packed
        self._counts, self._keys = counts, keys
        self._image_ids = number_keys(keys)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self))
        start = int(self._ends[index - 1]) if index else 0
        packed = pickle.loads(self._bytes[start : self._ends[index]].tobytes())
        return _unpack(packed, self.name, self._locate, int(self._image_ids[index]))

    @property
    def counts(self) -> Counts:
        """`Record.counts` of every record, as arrays."""
        return self._counts

    @property
    def keys(self) -> NDArray[np.uint64]:
        """A hash of each record's image."""
        return self._keys


class TableBuilder:
    """Builds a `Table` from rows; a row that cannot become a record becomes a problem.

    Args:
        name: Start of every record's address.
        locate: Makes an image reference of a value in a row and the record's address.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.

    Attributes:
        skips: Counts the files that are passed over.
    """

    def __init__(self, name: str, locate: Locate, columns: Columns | None = None, keep: Sequence[str] = ()) -> None:
        self.name = name
        self.columns = columns
        self.skips = Skips()
        self._locate, self._keep = locate, keep
        self._packed = bytearray()
        self._ends = array("q")
        self._keys = array("Q")
        self._counts = array("i")
        self._problems: list[Problem] = []

    def add(self, position: str, row: Mapping[str, Any], images: Sequence[Any] | None = None) -> None:
        """Add a row.

        Args:
            position: End of the record's address, after the name of the table.
            row: Values by column.
            images: Values for `locate`, if the row itself does not name the images.
        """
        try:
            parsed = parse_row(row, self.columns, self._keep)
            values = parsed.images if images is None else tuple(images)
            packed = _pack(parsed, values, position)
            record = _unpack(packed, self.name, self._locate, 0)
            if not values:
                raise InputError(describe_missing_image(row))
        except OpenBlipError as error:
            self.reject(position, str(error))
            return
        self._packed += pickle.dumps(packed, protocol=pickle.HIGHEST_PROTOCOL)
        self._ends.append(len(self._packed))
        self._keys.append(image_key(record, parsed.image_id, self.name))
        self._counts.extend(record.counts().values())

    def reject(self, position: str, reason: str, *, kind: str = "", count: int = 1) -> None:
        """Add a problem in place of a record; see [`Problem`][openblip.data.problems.Problem]."""
        self._problems.append(Problem(self.name + position, reason, kind, count))

    def build(self) -> Table:
        """Return the table of all rows added so far."""
        names = list(Record((), "").counts())
        columns = np.array(self._counts, np.int32).reshape(-1, len(names)).T
        return Table(
            self.name,
            self._locate,
            (np.array(self._packed, np.uint8), np.array(self._ends, np.int64)),
            {name: np.ascontiguousarray(column) for name, column in zip(names, columns, strict=True)},
            np.array(self._keys, np.uint64),
            self._problems,
            self.skips,
        )


def read_record(
    row: Mapping[str, Any],
    address: str,
    source: str,
    locate: Locate,
    *,
    images: Sequence[Any] | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
) -> Record | Problem:
    """Make a record of a stream's row. Its image id is a hash, because the number of images is unknown.

    Args:
        row: Values by column.
        address: Address of the record.
        source: Name of the stream.
        locate: Makes an image reference of a value in a row and the record's address.
        images: Values for `locate`, if the row itself does not name the images.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.

    Returns:
        The record, or the reason why there is none.
    """
    try:
        parsed = parse_row(row, columns, keep)
        refs = tuple(locate(value, address) for value in (parsed.images if images is None else images))
        if not refs:
            raise InputError(describe_missing_image(row))
    except OpenBlipError as error:
        return Problem(address, str(error))
    record = Record(
        images=refs,
        address=address,
        captions=parsed.captions,
        questions=parsed.questions,
        expressions=parsed.expressions,
        label=parsed.label,
        extra=parsed.extra,
        filtered=parsed.filtered,
    )
    return replace(record, image_id=image_key(record, parsed.image_id, source) >> 1)


def describe_missing_image(row: Mapping[str, Any]) -> str:
    """Return the reason why a row without an image cannot be used, with the columns that it has."""
    if not row or any(plain_name(str(name)) in (*IMAGE_COLUMNS, *PAIR_COLUMNS) for name in row):
        return "there is no image"
    names = ", ".join(map(repr, row))
    return f"there is no image: the columns are {names}; name one with --columns image=NAME (columns= in Python)"


def image_key(record: Record, image_id: str, source: str) -> int:
    """Return 64 bits that are equal for records of one image.

    A file is identified by its address. An embedded image is identified by the row's `image_id`, or else by its row.
    """
    addresses = [image.address for image in record.images]
    embedded = all(address.startswith(record.address) for address in addresses)
    name = f"{source}#{image_id}" if embedded and image_id else "\n".join(addresses)
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def number_keys(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number keys (N,) from 0 in the order of their first appearance; equal keys get equal numbers."""
    _, first_index, group = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first_index), np.int64)
    rank[np.argsort(first_index)] = np.arange(len(first_index))
    return rank[group.reshape(-1)]


def _pack(parsed: ParsedRow, images: Sequence[Any], position: str) -> tuple[Any, ...]:
    """Return plain tuples, which take a third of the memory of the objects."""
    questions = [(q.text, q.answers, q.source, q.id, q.auto, q.wrong) for q in parsed.questions]
    expressions = [(expression.text, expression.box, expression.auto) for expression in parsed.expressions]
    return (
        tuple(images),
        position,
        parsed.captions,
        questions,
        expressions,
        parsed.label,
        dict(parsed.extra),
        parsed.filtered,
    )


def _unpack(packed: tuple[Any, ...], name: str, locate: Locate, image_id: int) -> Record:
    images, position, captions, questions, expressions, label, extra, filtered = packed
    address = name + position
    return Record(
        tuple(locate(value, address) for value in images),
        address,
        captions,
        tuple(Question(*fields) for fields in questions),
        tuple(Expression(*fields) for fields in expressions),
        label,
        image_id,
        extra,
        filtered,
    )
