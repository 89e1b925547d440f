"""Which records make up each batch: a function of seed, epoch, step and rank, and of nothing else (no torch).

A *unit* is what one place in a batch is filled with: a record, or one caption or question of it. Batch ``step`` of rank
``r`` among ``world`` ranks is made of the units from ``(step * world + r) * batch`` on in the epoch's order, so that
the batches of all ranks side by side are one batch of a single process. No rank, and no worker, sees another's units.

Every work item carries some spare units. Whoever makes the batch takes them in the place of units that turn out to be
bad; so each batch has its full size, and what lies in the others never shifts.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.sources.base import Source, Stream
from openblip.errors import InputError

Made = TypeVar("Made")

SPARES = 64
STREAM_SPARES = 16  # these travel with their bytes


@dataclass(frozen=True)
class Unit:
    """One place in a batch: ``number`` of a record, and which of its captions or questions. A stream sends the record.

    ``number`` and ``part`` (and the epoch) seed the sample's random draws.
    """

    number: int
    part: int
    record: Record | Problem | None = None


@dataclass(frozen=True)
class Work:
    """One batch to make."""

    epoch: int
    step: int
    units: Sequence[Unit]
    spares: Sequence[Unit] = ()


@dataclass(frozen=True)
class End:
    """No batch: the epoch is over."""

    epoch: int


class Plan(Protocol):
    """The batches of one rank."""

    def steps(self) -> int | None:
        """Batches in an epoch; None if no one knows."""

    def works(self, epoch: int, start: int = 0) -> Iterator[Work]:
        """The batches of an epoch from number ``start`` on."""


@dataclass(frozen=True)
class Sharding:
    """How an epoch is cut into batches: ``batch`` units for each of ``world`` ranks.

    ``full`` drops what does not fill a last batch for every rank; otherwise the rest is shared out, every unit comes
    once, and there are no spares.
    """

    batch: int
    seed: int = 42
    shuffle: bool = True
    full: bool = True
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.rank < self.world:
            raise InputError(f"a batch of {self.batch} for rank {self.rank} of {self.world} cannot be")


# --- sources with numbers -----------------------------------------------------------------------------------------


class IndexedSampler:
    """A full shuffle of all units of a source."""

    def __init__(self, source: Source, parts: NDArray[np.int32], sharding: Sharding, period: int = 1) -> None:
        """``parts`` (len(source),) is how many units each record has; ``period`` epochs differ in their records."""
        self.parts = parts
        self.source = source
        self.sharding = sharding
        fewest = min(int(parts[source.indices(epoch)].sum()) for epoch in range(period))
        if fewest < sharding.world:
            raise InputError(f"{source.name} has {fewest} samples to share among {sharding.world} processes")
        # A batch is never larger than a rank's share, so that a handful of pictures can be trained on.
        self.batch = min(sharding.batch, fewest // sharding.world) if sharding.full else sharding.batch
        together = self.batch * sharding.world
        self._steps = fewest // together if sharding.full else -(-fewest // together)

    def steps(self) -> int:
        """Batches in an epoch, the same for all ranks and epochs."""
        return self._steps

    def works(self, epoch: int, start: int = 0) -> Iterator[Work]:
        """The batches of an epoch from number ``start`` on."""
        cut, batch = self.sharding, self.batch
        numbers = self.source.indices(epoch)
        ends = np.cumsum(self.parts[numbers])
        total = int(ends[-1])
        order = permutation(total, cut.seed, epoch) if cut.shuffle else np.arange(total)

        def units(places: NDArray[np.int64]) -> list[Unit]:
            chosen = order[places]
            at = np.searchsorted(ends, chosen, side="right")
            part = chosen - (ends[at] - self.parts[numbers[at]])
            return [Unit(int(number), int(p)) for number, p in zip(numbers[at], part, strict=True)]

        for step in range(start, self._steps):
            first = step * batch * cut.world
            if cut.full:
                places = np.arange(batch) + first + cut.rank * batch
                yield Work(epoch, step, units(places), units(self._spares(first, total)))
            else:
                last = min(first + batch * cut.world, total)
                share = np.array_split(np.arange(first, last), cut.world)[cut.rank]
                yield Work(epoch, step, units(share))

    def _spares(self, first: int, total: int) -> NDArray[np.int64]:
        """Places of the order outside the batch that starts at ``first``, other ones for every rank.

        They lie half an epoch away, so that no unit soon comes a second time.
        """
        world, together = self.sharding.world, self.batch * self.sharding.world
        outside = total - together
        after = (np.arange(min(SPARES * world, outside)) + outside // 2) % max(outside, 1)
        return ((first + together + after) % total)[self.sharding.rank :: world]


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """An order of ``count`` things, by arithmetic that no library's version changes (SplitMix64)."""
    key = np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest(), "big"))
    x = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


# --- streams ------------------------------------------------------------------------------------------------------


class StreamSampler:
    """Shards in a shuffled order, then a shuffle in a window of ``window`` units.

    Ranks share the shards; where there are fewer shards than ranks, every rank reads all of them and takes its own
    records. An epoch is ``length`` units of all ranks together, for which shards are read again if need be, or else
    one reading, which only a single process may have. To start in the middle of an epoch, the epoch is read again from
    its start, without opening its pictures.
    """

    def __init__(
        self,
        stream: Stream,
        parts: Callable[[Record], int],
        sharding: Sharding,
        *,
        length: int | None = None,
        window: int = 1000,
        unusable: str = "nothing to train on",
    ) -> None:
        if length is None and sharding.world > 1:
            raise InputError(
                f"{stream.name} is a stream, and {sharding.world} processes need epochs of equal length: give length, "
                "the number of samples in an epoch"
            )
        if length is not None and length < sharding.batch * sharding.world:
            raise InputError(f"an epoch of {length} samples does not fill {sharding.world} batches of {sharding.batch}")
        self.stream, self.sharding = stream, sharding
        self._parts, self._unusable = parts, unusable
        self._length, self._window = length, window

    def steps(self) -> int | None:
        """Batches in an epoch, if its length was given."""
        return None if self._length is None else self._length // (self.sharding.batch * self.sharding.world)

    def works(self, epoch: int, start: int = 0) -> Iterator[Work]:
        """The batches of an epoch from number ``start`` on."""
        batch, full = self.sharding.batch, self.sharding.full
        units = self._units(epoch)
        spares: deque[Unit] = deque(maxlen=STREAM_SPARES if full else 0)
        for step in itertools.count() if self._length is None else range(self.steps() or 0):
            group = list(itertools.islice(units, batch))
            if not group or (full and len(group) < batch):
                return
            if step >= start:
                yield Work(epoch, step, group, tuple(spares))
            spares.extend(group)

    def _units(self, epoch: int) -> Iterator[Unit]:
        for lap in itertools.count():
            found = False
            for unit in self._lap(epoch, lap):
                found = True
                yield unit
            if self._length is None:
                return
            if not found:
                raise InputError(f"{self.stream.name} has no records for rank {self.sharding.rank}")

    def _lap(self, epoch: int, lap: int) -> Iterator[Unit]:
        """One reading of this rank's share, shuffled."""
        cut = self.sharding
        if not cut.shuffle:
            yield from self._read(range(self.stream.shards), lap)
            return
        rng = random.Random(f"{cut.seed}/{epoch}/{lap}")
        shards = list(range(self.stream.shards))
        rng.shuffle(shards)
        # Draws of its own for each rank: ranks that read the same shards must still agree on their order.
        yield from shuffled(
            self._read(shards, lap), self._window, random.Random(f"{cut.seed}/{epoch}/{lap}/{cut.rank}")
        )

    def _read(self, shards: Sequence[int], lap: int) -> Iterator[Unit]:
        cut = self.sharding
        by_shard = len(shards) >= cut.world
        for shard in shards[cut.rank :: cut.world] if by_shard else shards:
            first = (lap * len(shards) + shard) << 32
            for number, record in enumerate(self.stream.read(shard)):
                if by_shard or number % cut.world == cut.rank:
                    yield from self._units_of(first + number, record)

    def _units_of(self, number: int, record: Record | Problem) -> Iterator[Unit]:
        if isinstance(record, Problem):
            yield Unit(number, 0, record)
        elif count := self._parts(record):
            yield from (Unit(number, part, record) for part in range(count))
        else:
            yield Unit(number, 0, Problem(record.address, self._unusable))


def shuffled(items: Iterator[Made], window: int, rng: random.Random) -> Iterator[Made]:
    """Items in a random order, each at most about ``window`` places early."""
    held: list[Made] = []
    for item in items:
        held.append(item)
        if len(held) > window:
            yield _pop(held, rng)
    while held:
        yield _pop(held, rng)


def _pop(held: list[Made], rng: random.Random) -> Made:
    place = rng.randrange(len(held))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()
