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
from openblip.data.schema import Columns, ParsedRow, parse
from openblip.data.sources.base import Counts, Source
from openblip.errors import InputError, OpenBlipError

Locate: TypeAlias = Callable[[Any, str], ImageRef]


class Table(Source):
    """Records in memory, packed. ``locate`` makes a picture of a reference in a row and the record's address."""

    def __init__(
        self,
        name: str,
        locate: Locate,
        packed: tuple[NDArray[np.uint8], NDArray[np.int64]],
        counts: Counts,
        keys: NDArray[np.uint64],
        problems: Sequence[Problem] = (),
    ) -> None:
        self.name = name
        self.problems = tuple(problems)
        self._locate = locate
        self._bytes, self._ends = packed
        self._counts, self._keys = counts, keys
        self._ids = dense(keys)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Record:
        index = _checked(index, len(self))
        start = int(self._ends[index - 1]) if index else 0
        row = pickle.loads(self._bytes[start : self._ends[index]].tobytes())
        return _unpack(row, self.name, self._locate, int(self._ids[index]))

    @property
    def counts(self) -> Counts:
        return self._counts

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self._keys


class TableBuilder:
    """Rows in, :class:`Table` out; a row that is no record becomes one of its problems."""

    def __init__(self, name: str, locate: Locate, columns: Columns | None = None, keep: Sequence[str] = ()) -> None:
        self.name = name
        self.columns = columns
        self._locate, self._keep = locate, keep
        self._packed = bytearray()
        self._ends = array("q")
        self._keys = array("Q")
        self._counts = array("i")
        self._problems: list[Problem] = []

    def add(self, where: str, row: Mapping[str, Any], pictures: Sequence[Any] | None = None) -> None:
        """Add the row at ``where`` (what follows the source's name in its address).

        ``pictures`` are its references where the row itself does not name them.
        """
        try:
            written = parse(row, self.columns, self._keep)
            refs = written.images if pictures is None else tuple(pictures)
            packed = _pack(written, refs, where)
            record = _unpack(packed, self.name, self._locate, 0)
            if not refs:
                raise InputError("there is no picture")
        except OpenBlipError as error:
            self.reject(where, str(error))
            return
        self._packed += pickle.dumps(packed, protocol=pickle.HIGHEST_PROTOCOL)
        self._ends.append(len(self._packed))
        self._keys.append(picture_key(record, written.image_id, self.name))
        self._counts.extend(record.counts().values())

    def reject(self, where: str, reason: str) -> None:
        """Note a row that is no record."""
        self._problems.append(Problem(self.name + where, reason))

    def build(self) -> Table:
        """The table so far."""
        names = list(Record((), "").counts())
        counted = np.array(self._counts, np.int32).reshape(-1, len(names)).T
        return Table(
            self.name,
            self._locate,
            (np.array(self._packed, np.uint8), np.array(self._ends, np.int64)),
            {name: np.ascontiguousarray(column) for name, column in zip(names, counted, strict=True)},
            np.array(self._keys, np.uint64),
            self._problems,
        )


def read_record(
    row: Mapping[str, Any],
    address: str,
    source: str,
    locate: Locate,
    *,
    refs: Sequence[Any] | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
) -> Record | Problem:
    """A row of a stream as a record. Its image id is a hash, as no one knows yet how many pictures there are.

    ``refs`` are its pictures where the row itself does not name them.
    """
    try:
        written = parse(row, columns, keep)
        pictures = tuple(locate(ref, address) for ref in (written.images if refs is None else refs))
        if not pictures:
            raise InputError("there is no picture")
    except OpenBlipError as error:
        return Problem(address, str(error))
    record = Record(
        pictures, address, written.captions, written.questions, written.expressions, written.label, 0, written.extra
    )
    return replace(record, image_id=picture_key(record, written.image_id, source) >> 1)


def picture_key(record: Record, image_id: str, source: str) -> int:
    """64 bits that are equal for records of one picture.

    A picture is known by its file; one embedded in a row is known by the row's ``image_id``, or else by the row.
    """
    addresses = [picture.address for picture in record.images]
    embedded = all(address.startswith(record.address) for address in addresses)
    name = f"{source}#{image_id}" if embedded and image_id else "\n".join(addresses)
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def dense(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Numbers from 0 for keys (N,), equal for equal keys, in the order in which these first appear."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[group.reshape(-1)]


def _pack(written: ParsedRow, refs: Sequence[Any], where: str) -> tuple[Any, ...]:
    """Plain tuples: a third of what the objects would take."""
    questions = [(q.text, q.answers, q.source, q.id, q.auto, q.wrong) for q in written.questions]
    boxes = [(ref.text, ref.box, ref.auto) for ref in written.expressions]
    return tuple(refs), where, written.captions, questions, boxes, written.label, dict(written.extra)


def _unpack(row: tuple[Any, ...], name: str, locate: Locate, image_id: int) -> Record:
    refs, where, captions, questions, boxes, label, extra = row
    address = name + where
    return Record(
        tuple(locate(ref, address) for ref in refs),
        address,
        captions,
        tuple(Question(*question) for question in questions),
        tuple(Expression(*box) for box in boxes),
        label,
        image_id,
        extra,
    )


def _checked(index: int, count: int) -> int:
    if not -count <= index < count:
        raise IndexError(f"record {index} of {count}")
    return index % count
