"""The samples of each batch, as a function of seed, epoch, step and rank alone (no torch).

A sample is a record, or one caption or question of a record. Batch `step` of rank `r` among `world_size` ranks holds
the samples from `(step * world_size + r) * batch_size` on in the epoch's order. The batches of all ranks together are
one batch of a single process, and no rank or worker sees the samples of another one.

Every batch plan carries spare samples. They replace samples that turn out to be bad, so every batch has its full size
and the contents of the other batches never shift.
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

Item = TypeVar("Item")

SPARES = 64
STREAM_SPARES = 16  # fewer, because they travel with their bytes


@dataclass(frozen=True)
class SampleRef:
    """A reference to one sample. Together with the epoch, the two numbers seed its random draws.

    Attributes:
        record_number: Number of the record in its source.
        index: Which of the record's samples.
        record: The record itself, or its problem; only for streams.
    """

    record_number: int
    index: int
    record: Record | Problem | None = None


@dataclass(frozen=True)
class BatchPlan:
    """The samples of one batch, and spare samples for bad ones."""

    epoch: int
    step: int
    samples: Sequence[SampleRef]
    spares: Sequence[SampleRef] = ()


@dataclass(frozen=True)
class EpochEnd:
    """Marks the end of an epoch in a sequence of plans."""

    epoch: int


class Sampler(Protocol):
    """Plans the batches of one rank."""

    def steps(self) -> int | None:
        """Return the batches in an epoch, or `None` if the number is unknown."""

    def plans(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """Yield the batches of an epoch, from number `start` on."""


@dataclass(frozen=True)
class Sharding:
    """How an epoch is cut into batches.

    Attributes:
        batch_size: Samples per batch and rank.
        seed: Seed of the order.
        shuffle: Shuffle the samples.
        drop_last: Drop samples that do not fill a last batch for every rank. Otherwise the ranks share the last
            samples, every sample comes once, and there are no spares.
        rank: Number of this process.
        world_size: Number of processes.
    """

    batch_size: int
    seed: int = 42
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank must be between 0 and {self.world_size - 1}, got {self.rank}")


class IndexedSampler:
    """Shuffles all samples of an indexed source.

    Args:
        source: Records by number.
        num_samples: Samples in each record, (len(source),).
        sharding: How an epoch is cut into batches.
        period: Epochs after which the source's records repeat.

    Raises:
        InputError: If an epoch has fewer samples than there are ranks.
    """

    def __init__(self, source: Source, num_samples: NDArray[np.int64], sharding: Sharding, period: int = 1) -> None:
        self.num_samples = num_samples
        self.source = source
        self.sharding = sharding
        smallest_epoch = min(int(num_samples[source.indices(epoch)].sum()) for epoch in range(period))
        if smallest_epoch < sharding.world_size:
            raise InputError(f"{source.name} needs at least {sharding.world_size} samples, got {smallest_epoch}")
        # A batch is never larger than a rank's share, so that a handful of images can be trained on.
        share = smallest_epoch // sharding.world_size
        self.batch_size = min(sharding.batch_size, share) if sharding.drop_last else sharding.batch_size
        per_step = self.batch_size * sharding.world_size
        self._steps = smallest_epoch // per_step if sharding.drop_last else -(-smallest_epoch // per_step)

    def steps(self) -> int:
        """Return the batches in an epoch, the same for all ranks and epochs."""
        return self._steps

    def plans(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """Yield the batches of an epoch, from number `start` on."""
        sharding, batch_size = self.sharding, self.batch_size
        numbers = self.source.indices(epoch)
        ends = np.cumsum(self.num_samples[numbers])
        total = int(ends[-1])
        order = permutation(total, sharding.seed, epoch) if sharding.shuffle else np.arange(total)

        def refs(positions: NDArray[np.int64]) -> list[SampleRef]:
            chosen = order[positions]
            at = np.searchsorted(ends, chosen, side="right")
            index = chosen - (ends[at] - self.num_samples[numbers[at]])
            return [SampleRef(int(number), int(i)) for number, i in zip(numbers[at], index, strict=True)]

        for step in range(start, self._steps):
            begin = step * batch_size * sharding.world_size
            if sharding.drop_last:
                positions = np.arange(batch_size) + begin + sharding.rank * batch_size
                yield BatchPlan(epoch, step, refs(positions), refs(self._spares(begin, total)))
            else:
                end = min(begin + batch_size * sharding.world_size, total)
                share = np.array_split(np.arange(begin, end), sharding.world_size)[sharding.rank]
                yield BatchPlan(epoch, step, refs(share))

    def _spares(self, begin: int, total: int) -> NDArray[np.int64]:
        """Return positions outside the batch that starts at `begin`, different ones for every rank.

        They are half an epoch away, so that no sample soon comes a second time.
        """
        world_size, per_step = self.sharding.world_size, self.batch_size * self.sharding.world_size
        outside = total - per_step
        after = (np.arange(min(SPARES * world_size, outside)) + outside // 2) % max(outside, 1)
        return ((begin + per_step + after) % total)[self.sharding.rank :: world_size]


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of `count` numbers by SplitMix64, which no library version can change."""
    key = np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest(), "big"))
    x = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


class StreamSampler:
    """Shuffles the shards of a stream, then its samples within a window.

    Ranks share the shards. If there are fewer shards than ranks, every rank reads all shards and takes its own
    records. To start in the middle of an epoch, the epoch is read from its start, without opening its images.

    Args:
        stream: Records in shards.
        count_samples: Number of samples in a record.
        sharding: How an epoch is cut into batches.
        samples_per_epoch: Samples of all ranks in an epoch; shards are read again as needed. `None` reads the shards
            once per epoch, which only a single process can do.
        shuffle_window: Samples that are shuffled at a time.
        unusable: Reason to report for a record without samples.

    Raises:
        InputError: If `samples_per_epoch` is missing, or too small to fill a batch for every rank.
    """

    def __init__(
        self,
        stream: Stream,
        count_samples: Callable[[Record], int],
        sharding: Sharding,
        *,
        samples_per_epoch: int | None = None,
        shuffle_window: int = 1000,
        unusable: str = "not usable",
    ) -> None:
        world_size, batch_size = sharding.world_size, sharding.batch_size
        if samples_per_epoch is None and world_size > 1:
            raise InputError(
                f"{stream.name} is a stream, and {world_size} processes need epochs of equal length: "
                "set samples_per_epoch"
            )
        if samples_per_epoch is not None and samples_per_epoch < batch_size * world_size:
            raise InputError(
                f"samples_per_epoch must be at least {batch_size * world_size} to fill {world_size} batches of "
                f"{batch_size}, got {samples_per_epoch}"
            )
        self.stream, self.sharding = stream, sharding
        self._count_samples, self._unusable = count_samples, unusable
        self._samples_per_epoch, self._shuffle_window = samples_per_epoch, shuffle_window

    def steps(self) -> int | None:
        """Return the batches in an epoch, or `None` without `samples_per_epoch`."""
        if self._samples_per_epoch is None:
            return None
        return self._samples_per_epoch // (self.sharding.batch_size * self.sharding.world_size)

    def plans(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """Yield the batches of an epoch, from number `start` on."""
        batch_size, drop_last = self.sharding.batch_size, self.sharding.drop_last
        refs = self._refs(epoch)
        spares: deque[SampleRef] = deque(maxlen=STREAM_SPARES if drop_last else 0)
        for step in itertools.count() if self._samples_per_epoch is None else range(self.steps() or 0):
            samples = list(itertools.islice(refs, batch_size))
            if not samples or (drop_last and len(samples) < batch_size):
                return
            if step >= start:
                yield BatchPlan(epoch, step, samples, tuple(spares))
            spares.extend(samples)

    def _refs(self, epoch: int) -> Iterator[SampleRef]:
        """Yield this rank's samples of an epoch, shuffled, reading the shards again while the epoch lasts."""
        sharding = self.sharding
        for lap in itertools.count():
            shards = list(range(self.stream.shards))
            if sharding.shuffle:
                random.Random(f"{sharding.seed}/{epoch}/{lap}").shuffle(shards)
            refs = self._read(shards, lap)
            if sharding.shuffle:
                # A generator per rank: ranks that read the same shards must still agree on the order of the shards.
                rank_rng = random.Random(f"{sharding.seed}/{epoch}/{lap}/{sharding.rank}")
                refs = shuffle_in_window(refs, self._shuffle_window, rank_rng)
            is_empty = True
            for ref in refs:
                is_empty = False
                yield ref
            if self._samples_per_epoch is None:
                return
            if is_empty:
                raise InputError(f"{self.stream.name} has no records for rank {sharding.rank}")

    def _read(self, shards: Sequence[int], lap: int) -> Iterator[SampleRef]:
        rank, world_size = self.sharding.rank, self.sharding.world_size
        by_shard = len(shards) >= world_size
        for shard in shards[rank::world_size] if by_shard else shards:
            base = (lap * len(shards) + shard) << 32
            for number, record in enumerate(self.stream.read(shard)):
                if by_shard or number % world_size == rank:
                    yield from self._refs_of(base + number, record)

    def _refs_of(self, number: int, record: Record | Problem) -> Iterator[SampleRef]:
        if isinstance(record, Problem):
            yield SampleRef(number, 0, record)
        elif count := self._count_samples(record):
            yield from (SampleRef(number, index, record) for index in range(count))
        elif not record.filtered:
            yield SampleRef(number, 0, Problem(record.address, self._unusable))


def shuffle_in_window(items: Iterator[Item], window: int, rng: random.Random) -> Iterator[Item]:
    """Yield items in random order, each at most about `window` positions early."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > window:
            yield _pop_random(waiting, rng)
    while waiting:
        yield _pop_random(waiting, rng)


def _pop_random(items: list[Item], rng: random.Random) -> Item:
    index = rng.randrange(len(items))
    items[index], items[-1] = items[-1], items[index]
    return items.pop()
