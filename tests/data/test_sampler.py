"""Which samples make up which batch: no sample twice, none lost, the same for every number of ranks, from any step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.data.prefetch import Prefetcher
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.sampler import (
    SPARES,
    BatchPlan,
    IndexedSampler,
    SampleRef,
    Sharding,
    StreamSampler,
    permutation,
    shuffle_in_window,
)
from openblip.data.sources import open_source
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.combined import RotatingSource
from openblip.errors import InputError


def toy_source(parts: list[int], name: str = "p") -> Source:
    """Records with as many captions as `parts` says."""
    rows = [
        {"image": f"{name}{n}.png", "captions": [f"{n}/{index}" for index in range(count)]}
        for n, count in enumerate(parts)
    ]
    source = open_source(rows)
    assert isinstance(source, Source)
    return source


class ToyStream(Stream):
    """Shards of so many records, each with the given number of captions."""

    name = "toy"

    def __init__(self, shards: list[int], captions: int = 1) -> None:
        self.sizes, self.shards, self.captions = shards, len(shards), captions
        self.reads = 0

    def read(self, shard: int) -> Iterator[Record | Problem]:
        self.reads += 1
        for number in range(self.sizes[shard]):
            yield Record((), f"{shard}/{number}", tuple(map(str, range(self.captions))))


def plan_of(parts: list[int], **options: Any) -> IndexedSampler:
    source = toy_source(parts)
    return IndexedSampler(source, source.counts["captions"].astype(np.int64), Sharding(**options))


def stream_plan(stream: Stream, *, length: int | None = None, window: int = 10, **options: Any) -> StreamSampler:
    def parts(record: Record) -> int:
        return len(record.captions)

    return StreamSampler(stream, parts, Sharding(**options), samples_per_epoch=length, shuffle_window=window)


def keys(units: Any) -> list[tuple[int, int]]:
    return [(unit.record_number, unit.index) for unit in units]


def batches(works: Iterator[BatchPlan]) -> list[list[tuple[int, int]]]:
    return [keys(work.samples) for work in works]


sizes = st.lists(st.integers(0, 4), min_size=1, max_size=40).filter(lambda parts: sum(parts) >= 5)
shardings = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 5), "world_size": st.integers(1, 4), "seed": st.integers(0, 9)}
)
quick = settings(max_examples=60, deadline=None)


@quick
@given(parts=sizes, cut=shardings, epoch=st.integers(0, 3), shuffle=st.booleans())
def test_no_unit_comes_twice_and_few_are_left(parts: list[int], cut: dict[str, int], epoch: int, shuffle: bool) -> None:
    plans = [plan_of(parts, **cut, rank=rank, shuffle=shuffle) for rank in range(cut["world_size"])]
    works = [list(plan.plans(epoch)) for plan in plans]
    assert len({len(rank_plans) for rank_plans in works}) == 1
    used = [key for rank_plans in works for work in rank_plans for key in keys(work.samples)]
    every = {(number, index) for number, count in enumerate(parts) for index in range(count)}
    assert len(used) == len(set(used))
    assert set(used) <= every
    size = plans[0].batch_size
    assert all(len(work.samples) == size for rank_plans in works for work in rank_plans)
    assert len(every) - len(used) < size * cut["world_size"]


@quick
@given(parts=sizes, cut=shardings, epoch=st.integers(0, 3))
def test_when_not_full_every_unit_comes_exactly_once(parts: list[int], cut: dict[str, int], epoch: int) -> None:
    plans = [plan_of(parts, **cut, rank=rank, drop_last=False) for rank in range(cut["world_size"])]
    works = [list(plan.plans(epoch)) for plan in plans]
    assert [len(rank_plans) for rank_plans in works] == [plans[0].steps()] * cut["world_size"]
    used = [key for rank_plans in works for work in rank_plans for key in keys(work.samples)]
    assert sorted(used) == [(number, index) for number, count in enumerate(parts) for index in range(count)]
    assert not any(work.spares for rank_plans in works for work in rank_plans)


@quick
@given(parts=sizes, cut=shardings, epoch=st.integers(0, 3), start=st.integers(0, 60))
def test_an_epoch_can_start_anywhere(parts: list[int], cut: dict[str, int], epoch: int, start: int) -> None:
    plan = plan_of(parts, **cut)
    assert list(plan.plans(epoch, start)) == list(plan.plans(epoch))[start:]


@quick
@given(parts=sizes, batch=st.integers(1, 3), world=st.integers(2, 4), seed=st.integers(0, 9))
def test_ranks_side_by_side_are_one_large_batch(parts: list[int], batch: int, world: int, seed: int) -> None:
    if sum(parts) < batch * world:
        parts = [*parts, batch * world]
    plans = [plan_of(parts, batch_size=batch, world_size=world, rank=rank, seed=seed) for rank in range(world)]
    alone = plan_of(parts, batch_size=batch * world, seed=seed)
    together = [
        [key for rank in rank_plans for key in rank]
        for rank_plans in zip(*(batches(plan.plans(1)) for plan in plans), strict=True)
    ]
    assert together == batches(alone.plans(1))


@quick
@given(parts=sizes, cut=shardings)
def test_spares_are_of_no_batch_of_that_step_and_of_one_rank_alone(parts: list[int], cut: dict[str, int]) -> None:
    plans = [plan_of(parts, **cut, rank=rank) for rank in range(cut["world_size"])]
    for works in zip(*(plan.plans(0) for plan in plans), strict=True):
        used = [key for work in works for key in keys(work.samples)]
        spare = [key for work in works for key in keys(work.spares)]
        assert len(spare) == len(set(spare))
        assert not set(spare) & set(used)
        assert len(spare) == min(SPARES * len(plans), sum(parts) - len(used))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return batches(plan_of([1] * 50, batch_size=10, seed=seed).plans(epoch))

    assert order(1, 0) == order(1, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert batches(plan_of([2, 0, 1], batch_size=3, shuffle=False).plans(0)) == [[(0, 0), (0, 1), (2, 0)]]


def test_a_handful_of_records_makes_smaller_batches() -> None:
    plan = plan_of([1] * 5, batch_size=32, world_size=2, rank=1)
    assert plan.batch_size == 2
    assert [len(work.samples) for work in plan.plans(0)] == [2]
    with pytest.raises(InputError, match="needs at least 2 samples, got 1"):
        plan_of([1], batch_size=32, world_size=2)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        plan_of([1], batch_size=0)
    with pytest.raises(InputError, match="rank must be between 0 and 1"):
        plan_of([1], batch_size=1, rank=2, world_size=2)


def test_a_rotating_source_gives_each_epoch_its_turn() -> None:
    source = RotatingSource([toy_source([1] * 4, "a"), toy_source([2] * 3, "b")], always=[toy_source([1] * 2, "x")])
    plan = IndexedSampler(source, source.counts["captions"].astype(np.int64), Sharding(batch_size=3), source.period)
    assert plan.steps() == 2  # six samples in even epochs, eight in odd ones: as many steps in each
    even, odd = ({key for batch in batches(plan.plans(epoch)) for key in batch} for epoch in (0, 1))
    assert even == {(number, 0) for number in range(6)}
    assert {number for number, _ in odd} <= {0, 1, 6, 7, 8}


@quick
@given(count=st.integers(0, 300), seed=st.integers(0, 10), epoch=st.integers(0, 5))
def test_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(count, seed, epoch).tolist()) == list(range(count))


def test_the_order_never_changes_with_a_library() -> None:
    """A run that started with one version of NumPy resumes with another."""
    mask = 2**64 - 1

    def mixed(number: int) -> int:  # SplitMix64, as published, in whole numbers
        x = (number * 0x9E3779B97F4A7C15 + key) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = int.from_bytes(hashlib.blake2b(b"42/3", digest_size=8).digest(), "big")
    assert permutation(1000, 42, 3).tolist() == sorted(range(1000), key=mixed)


def test_every_place_is_as_likely() -> None:
    positions = np.array([permutation(20, 42, epoch).tolist().index(7) for epoch in range(4000)])
    assert np.bincount(positions, minlength=20).min() > 140  # 200 expected at each place


streams = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda shards: sum(shards) >= 4)


@quick
@given(shards=streams, captions=st.integers(1, 3), batch=st.integers(1, 4), window=st.integers(0, 20))
def test_a_stream_read_once_gives_every_unit_once(shards: list[int], captions: int, batch: int, window: int) -> None:
    plan = stream_plan(ToyStream(shards, captions), window=window, batch_size=batch, drop_last=False)
    used = [key for rank_plans in batches(plan.plans(0)) for key in rank_plans]
    assert len(set(used)) == len(used) == sum(shards) * captions


@quick
@given(shards=streams, cut=shardings, start=st.integers(0, 10), epoch=st.integers(0, 2))
def test_a_stream_can_start_anywhere(shards: list[int], cut: dict[str, int], start: int, epoch: int) -> None:
    length = max(sum(shards), cut["batch_size"] * cut["world_size"])
    plan = stream_plan(ToyStream(shards, 2), length=length, **cut)
    same = _readable(lambda: list(plan.plans(epoch, start)) == list(plan.plans(epoch))[start:])
    assert same is True or same is None


@quick
@given(shards=streams, cut=shardings)
def test_ranks_share_a_stream(shards: list[int], cut: dict[str, int]) -> None:
    world = cut["world_size"]
    total = sum(shards)
    lengths = total - total % (cut["batch_size"] * world)
    if not lengths:
        return
    plans = [stream_plan(ToyStream(shards), length=lengths, **cut, rank=rank) for rank in range(world)]
    works = _readable(lambda: [list(plan.plans(0)) for plan in plans])
    if works is None:
        return
    assert {len(rank_plans) for rank_plans in works} == {plans[0].steps()}
    laps = 1 << 32  # a rank whose share is used up starts again, with other numbers
    rank_keys = [
        [key for work in rank_plans for key in keys(work.samples) if key[0] < len(shards) * laps]
        for rank_plans in works
    ]
    used = [key for rank_plans in rank_keys for key in rank_plans]
    assert len(used) == len(set(used))


def _readable(check: Callable[[], Any]) -> Any:
    """None if the shards of a rank are all empty, which it says."""
    try:
        return check()
    except InputError as error:
        if "has no records for rank" in str(error):
            return None
        raise


def test_a_stream_of_fewer_shards_than_ranks_is_shared_by_record() -> None:
    plans = [stream_plan(ToyStream([12]), length=12, batch_size=3, world_size=4, rank=rank) for rank in range(4)]
    used = [key for plan in plans for rank_plans in batches(plan.plans(0)) for key in rank_plans]
    assert sorted(used) == [(number, 0) for number in range(12)]


def test_a_stream_is_read_again_until_the_epoch_is_long_enough() -> None:
    stream = ToyStream([2, 3])
    plan = stream_plan(stream, length=12, batch_size=4)
    assert plan.steps() == 3
    numbers = [number for rank_plans in batches(plan.plans(0)) for number, _ in rank_plans]
    assert len(numbers) == len(set(numbers)) == 12  # each lap has its own draws
    assert stream.reads == 6


def test_streams_of_several_ranks_need_a_length() -> None:
    with pytest.raises(InputError, match="set samples_per_epoch"):
        stream_plan(ToyStream([4]), batch_size=1, world_size=2)
    with pytest.raises(InputError, match="must be at least 4 to fill"):
        stream_plan(ToyStream([4]), batch_size=4, length=3)
    with pytest.raises(InputError, match="has no records for rank 1"):
        list(stream_plan(ToyStream([4, 0]), batch_size=1, world_size=2, rank=1, length=4, shuffle=False).plans(0))


def test_what_cannot_be_used_keeps_its_place_in_a_stream() -> None:
    class Mixed(ToyStream):
        def read(self, shard: int) -> Iterator[Record | Problem]:
            yield Record((), "no caption")
            yield Problem("broken", "it is broken")
            yield Record((), "fine", ("a", "b"))

    plan = stream_plan(Mixed([3]), batch_size=2, shuffle=False)
    rank_keys, second = (work.samples for work in plan.plans(0))
    assert [unit.record for unit in rank_keys] == [
        Problem("no caption", "not usable"), Problem("broken", "it is broken")
    ]  # fmt: skip
    assert keys(second) == [(2, 0), (2, 1)]
    assert [work.spares for work in plan.plans(0)] == [(), tuple(rank_keys)]


@quick
@given(count=st.integers(0, 60), window=st.integers(0, 30), seed=st.integers(0, 5))
def test_a_window_shuffles_no_further_than_it_is_wide(count: int, window: int, seed: int) -> None:
    shuffled = list(shuffle_in_window(iter(range(count)), window, random.Random(seed)))
    assert sorted(shuffled) == list(range(count))
    assert all(item - position <= window for position, item in enumerate(shuffled))


def test_reading_ahead() -> None:
    consumed: list[int] = []

    def source() -> Iterator[int]:
        for number in range(20):
            consumed.append(number)
            yield number
        raise InputError("the stream broke")

    ahead = Prefetcher(source(), depth=3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(consumed) <= 5 + 3 + 1
    assert [next(ahead) for _ in range(15)] == list(range(5, 20))
    for _ in range(2):
        with pytest.raises(InputError, match="the stream broke"):
            next(ahead)
    assert list(Prefetcher(iter(range(3)), depth=1)) == [0, 1, 2]


def test_reading_ahead_ends_when_closed() -> None:
    ahead = Prefetcher(iter(range(10**9)), depth=2)
    next(ahead)
    ahead.close()
    assert ahead._thread is not None
    assert not ahead._thread.is_alive()
    Prefetcher(iter(range(3)), depth=2).close()  # never started
    assert SampleRef(1, 2) == SampleRef(1, 2)
