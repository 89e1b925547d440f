"""One input gives one result, a list gives a list, an iterator streams; pictures are opened ahead of the model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from itertools import islice
from typing import Any, Literal, TypeVar

from openblip.errors import InputError, OpenBlipError

Item = TypeVar("Item")
Made = TypeVar("Made")
OnError = Literal["return", "raise"]


class Shape(Enum):
    """How many inputs a caller gave, which decides what the caller gets back."""

    ONE = "one"
    LIST = "list"
    STREAM = "stream"


def shape_of(inputs: Any) -> Shape:
    """Tell one picture or text from a list and from an iterator.

    A string, bytes, path, file object, PIL picture or 3-d array is one; a sequence or a 4-d array is a list.
    """
    if isinstance(inputs, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(inputs, "read"):
        return Shape.ONE
    if hasattr(inputs, "ndim") and hasattr(inputs, "shape"):
        return Shape.LIST if inputs.ndim == 4 else Shape.ONE
    if isinstance(inputs, Sequence):
        return Shape.LIST
    if isinstance(inputs, Iterator):
        return Shape.STREAM
    return Shape.LIST if isinstance(inputs, Iterable) and not hasattr(inputs, "convert") else Shape.ONE


def deliver(results: Iterator[Made | OpenBlipError], shape: Shape, on_error: OnError) -> Any:
    """Give results back in the shape the inputs came in; a lone bad input raises, whatever ``on_error`` says."""
    if on_error not in ("return", "raise"):
        raise InputError(f"on_error is 'return' or 'raise', not {on_error!r}")
    if shape is Shape.ONE:
        return next(_raising(results))
    if on_error == "raise":
        results = _raising(results)
    return list(results) if shape is Shape.LIST else results


def ahead(
    make: Callable[[Item], Made], items: Iterable[Item], workers: int, window: int
) -> Iterator[Made | OpenBlipError]:
    """``make(item)`` of every item, in order, by ``workers`` threads that stay at most ``window`` items ahead.

    An :class:`OpenBlipError` takes the place of its item; no other error is expected, so any other one is raised.
    """

    def attempt(item: Item) -> Made | OpenBlipError:
        try:
            return make(item)
        except OpenBlipError as error:
            return error

    if workers < 1:
        yield from map(attempt, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="openblip-open") as pool:
        waiting: deque[Future[Made | OpenBlipError]] = deque()
        try:
            waiting.extend(pool.submit(attempt, item) for item in islice(source, window))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(attempt, item) for item in islice(source, 1))
                yield done
        finally:
            for future in waiting:
                future.cancel()


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Runs of up to ``size`` items."""
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def by_runs(asked: list[list[Item]], most: int, compute: Callable[[list[Item], slice], list[Made]]) -> list[list[Made]]:
    """What ``compute`` makes of texts, up to ``most`` at a time, for each image: ``asked[image][text]``, all as many.

    It gets the texts of a run of images side by side, and which images those are.
    """
    found: list[list[Made]] = [[] for _ in asked]
    if not asked[0]:
        return found
    images = max(1, most // len(asked[0]))
    each = max(1, min(len(asked[0]), most))
    for start in range(0, len(asked), images):
        run = slice(start, start + images)
        for at in range(0, len(asked[0]), each):
            texts = [text for own in asked[run] for text in own[at : at + each]]
            made = iter(compute(texts, run))
            for own, results in zip(asked[run], found[run], strict=True):
                results += islice(made, len(own[at : at + each]))
    return found


def firsts(found: Iterator[list[Made] | OpenBlipError]) -> Iterator[Made | OpenBlipError]:
    """The only result of every image, errors left in place."""
    return (one if isinstance(one, OpenBlipError) else one[0] for one in found)


def _raising(results: Iterator[Made | OpenBlipError]) -> Iterator[Made]:
    for result in results:
        if isinstance(result, OpenBlipError):
            raise result
        yield result
