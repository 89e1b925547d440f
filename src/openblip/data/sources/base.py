"""Sources of records: indexed, or read as a stream (no torch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.data.problems import Problem
from openblip.data.records import Record

Counts: TypeAlias = Mapping[str, NDArray[np.int32]]


class Source(ABC):
    """Records by number, in a fixed order. ``problems`` are the rows that could not become records."""

    name: str
    problems: Sequence[Problem] = ()
    period = 1  # epochs after which `indices` repeats

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """For each record, how many it has of what :meth:`Record.counts` names: arrays (len(self),)."""

    @property
    @abstractmethod
    def keys(self) -> NDArray[np.uint64]:
        """A hash of each record's picture (len(self),), equal where records share one."""

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of the records that belong to an epoch: all of them, unless the source rotates."""
        return np.arange(len(self), dtype=np.int64)


class Stream(ABC):
    """Records that can only be read one after another, in ``shards`` that can be read in any order."""

    name: str
    shards: int

    @abstractmethod
    def read(self, shard: int) -> Iterator[Record | Problem]:
        """The records of one shard, in its own order; what cannot be read comes as a :class:`Problem` in its place."""
