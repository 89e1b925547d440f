"""Several sources as one (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.skips import Skips
from openblip.data.sources.base import Counts, Source, Stream, check_index
from openblip.data.sources.table import number_keys
from openblip.errors import InputError


class ConcatSource(Source):
    """Several sources in sequence; records of one image share an image id across them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise InputError("at least one source is needed, got none")
        self.sources = tuple(sources)
        self.name = ", ".join(source.name for source in sources)
        self.problems = [problem for source in sources for problem in source.problems]
        self.skips = Skips()
        for source in sources:
            self.skips.extend(source.skips)
        self._ends = np.cumsum([len(source) for source in sources])
        names = sources[0].counts
        self._counts = {name: np.concatenate([source.counts[name] for source in sources]) for name in names}
        self._keys = np.concatenate([source.keys for source in sources])
        self._image_ids = number_keys(self._keys)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return replace(self.sources[number][index - start], image_id=int(self._image_ids[index]))

    @property
    def counts(self) -> Counts:
        """`Record.counts` of every record, as arrays."""
        return self._counts

    @property
    def keys(self) -> NDArray[np.uint64]:
        """A hash of each record's image."""
        return self._keys


class RotatingSource(ConcatSource):
    """Sources of which each epoch uses one, in turn, and further sources that every epoch uses.

    The paper's pretraining on 129M images reads a fifth of LAION in each epoch (section 4.1).

    Args:
        turns: Sources of which an epoch uses one.
        always: Sources that every epoch uses.
    """

    def __init__(self, turns: Sequence[Source], always: Sequence[Source] = ()) -> None:
        super().__init__([*always, *turns])
        self.period = len(turns)
        self._num_always = sum(len(source) for source in always)
        self._turn_ends = np.cumsum([self._num_always, *(len(source) for source in turns)])

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Return the records of `always`, then the records of the epoch's turn."""
        turn = epoch % self.period
        records_of_turn = np.arange(self._turn_ends[turn], self._turn_ends[turn + 1])
        return np.concatenate([np.arange(self._num_always), records_of_turn], dtype=np.int64)


class ChainedStream(Stream):
    """The shards of several streams."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = tuple(streams)
        self.name = ", ".join(stream.name for stream in streams)
        self._shards = [(stream, shard) for stream in streams for shard in range(stream.shards)]
        self.shards = len(self._shards)

    def read(self, shard: int) -> Iterator[Record | Problem]:
        """Yield the records of one shard of one of the streams."""
        stream, number = self._shards[shard]
        return stream.read(number)
