"""An iterator that a thread reads ahead of (no torch)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Generic, Literal, TypeVar, cast

Item = TypeVar("Item")


class Prefetcher(Iterator[Item], Generic[Item]):
    """Reads up to `depth` items of an iterator ahead in a thread, and raises an error after the items before it."""

    def __init__(self, source: Iterator[Item], depth: int) -> None:
        self._source = source
        self._queue: queue.Queue[tuple[Literal["item", "error", "end"], object]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        if self._thread is None:  # not earlier: worker processes must fork before any other thread runs
            self._thread = threading.Thread(target=self._run, daemon=True, name="openblip-prefetch")
            self._thread.start()
        kind, value = self._queue.get()
        if kind == "item":
            return cast(Item, value)
        self._queue.put((kind, value))  # for the next call
        if kind == "error":
            raise cast(BaseException, value)
        raise StopIteration

    def close(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        while self._thread is not None and self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.01)

    def _run(self) -> None:
        try:
            for item in self._source:
                self._queue.put(("item", item))
                if self._stopped.is_set():
                    return
        except BaseException as error:  # raised in the consumer's thread
            self._queue.put(("error", error))
        else:
            self._queue.put(("end", None))
