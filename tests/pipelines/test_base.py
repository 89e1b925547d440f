"""Prefetching, batching and the model that pipelines share."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.pipelines.base import (
    OpenedImage,
    Prepared,
    group_batches,
    iter_chunks,
    iter_row_batches,
    iter_similar_lengths,
    prefetch,
)

PIXELS = np.zeros((2, 2, 3), np.uint8)


def halve(number: int) -> int:
    if number % 2:
        raise InputError(f"{number} must be even")
    return number // 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_the_order_and_puts_errors_in_place(workers: int) -> None:
    results = list(prefetch(halve, [0, 1, 2, 3, 4], workers, window=2))
    assert [result for result in results if not isinstance(result, OpenBlipError)] == [0, 1, 2]
    errors = {index: result.item for index, result in enumerate(results) if isinstance(result, OpenBlipError)}
    assert errors == {1: 1, 3: 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetch_raises_other_exceptions(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda number: 1 // number, [1, 0, 1], workers, window=2))


@pytest.mark.parametrize(("workers", "window"), [(0, 4), (1, 1), (2, 4)])
def test_prefetch_reads_at_most_the_window_ahead(workers: int, window: int) -> None:
    read = itertools.count()
    started = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for _ in range(100):
            started.release()
            yield next(read)

    results = prefetch(halve, items(), workers, window)
    next(results)
    assert next(read) <= window + 1


def prepare(shape: tuple[int, int]) -> Prepared[None]:
    return Prepared(OpenedImage(PIXELS, frames=shape[0]), None, num_texts=shape[1])


@given(
    st.lists(st.one_of(st.none(), st.tuples(st.sampled_from([0, 1, 4]), st.sampled_from([0, 1, 3])))), st.integers(1, 9)
)
def test_batches_hold_items_of_one_shape_in_order(shapes: list[tuple[int, int] | None], size: int) -> None:
    items = [ImageError("bad") if shape is None else prepare(shape) for shape in shapes]
    groups = list(group_batches(iter(items), size))
    assert [item for group in groups for item in group] == items
    for group in groups:
        assert 1 <= len(group) <= size
        batch = [item for item in group if isinstance(item, Prepared)]
        assert len({(item.image.frames, item.num_texts) for item in batch}) <= 1
        frames = batch[0].image.frames if batch else 0
        assert len(batch) == 1 or len(batch) * max(1, frames) <= size


def test_batches_are_full_where_items_are_alike() -> None:
    groups = list(group_batches([prepare((0, 1))] * 7, 3))
    assert [len(group) for group in groups] == [3, 3, 1]
    videos = list(group_batches([prepare((4, 1))] * 3, 8))
    assert [len(group) for group in videos] == [2, 1]


def test_a_full_batch_does_not_wait_for_the_next_item() -> None:
    """A slow stream gets its results as soon as a batch is full."""

    def items() -> Iterator[Prepared[None]]:
        yield from [prepare((0, 1))] * 2
        raise AssertionError("the third item was read")

    assert len(next(group_batches(items(), 2))) == 2


@given(st.integers(1, 7), st.integers(0, 9), st.integers(1, 12))
def test_row_batches_cover_every_row_once(images: int, count: int, max_rows: int) -> None:
    rows = [[(image, text) for text in range(count)] for image in range(images)]
    seen = []
    for image_slice, text_slice, batch in iter_row_batches(rows, max_rows):
        assert len(batch) <= max_rows
        assert batch == [row for image_rows in rows[image_slice] for row in image_rows[text_slice]]
        seen += batch
    assert sorted(seen) == [row for image_rows in rows for row in image_rows]


@given(st.lists(st.integers()), st.integers(1, 5))
def test_chunks_are_full_but_for_the_last(items: list[int], size: int) -> None:
    chunks = list(iter_chunks(items, size))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(len(chunk) == size for chunk in chunks[:-1])


@given(st.lists(st.lists(st.integers(), max_size=9)), st.integers(1, 4))
def test_rows_of_similar_length_come_together(rows: list[list[int]], size: int) -> None:
    indices = list(itertools.chain(*iter_similar_lengths(rows, size)))
    assert sorted(indices) == list(range(len(rows)))
    lengths = [len(rows[index]) for index in indices]
    assert lengths == sorted(lengths)
