"""The two kinds of sources: indexed, and read as a stream (no torch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.skips import Skips

Counts: TypeAlias = Mapping[str, NDArray[np.int32]]


class Source(ABC):
    """Records by number, in a fixed order.

    Attributes:
        name: Where the records come from.
        problems: The rows that could not become records.
        skips: The files that a folder passes over, by kind.
        period: Number of epochs after which `indices` repeats.
    """

    name: str
    problems: Sequence[Problem] = ()
    skips: Skips = Skips()
    period = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """`Record.counts` of every record, as arrays (len(self),)."""

    @property
    @abstractmethod
    def keys(self) -> NDArray[np.uint64]:
        """A hash of each record's image (len(self),), equal for records of one image."""

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Return the numbers of the records in an epoch: all records, unless the source rotates."""
        return np.arange(len(self), dtype=np.int64)


class Stream(ABC):
    """Records that can only be read in sequence, in shards that can be read in any order.

    Attributes:
        name: Where the records come from.
        shards: Number of shards.
    """

    name: str
    shards: int

    @abstractmethod
    def read(self, shard: int) -> Iterator[Record | Problem]:
        """Yield the records of one shard, with a `Problem` in place of each record that cannot be read."""


def check_index(index: int, count: int) -> int:
    """Return `index` counted from the front; raises `IndexError` if it is out of range."""
    if not -count <= index < count:
        raise IndexError(f"record {index} of {count}")
    return index % count
