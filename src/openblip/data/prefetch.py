"""An iterator read ahead by a thread (no torch)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class Prefetcher(Generic[Item]):
    """An iterator that a thread keeps up to ``depth`` items ahead of; an error is raised where it belongs."""

    source: Iterator[Item]
    depth: int
    _queue: queue.Queue[tuple[str, object]] = field(init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._queue = queue.Queue(self.depth)

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        if self._thread is None:  # not before: worker processes must be forked while no other thread runs
            self._thread = threading.Thread(target=self._run, daemon=True, name="openblip-read-ahead")
            self._thread.start()
        kind, item = self._queue.get()
        if kind == "item":
            return item  # type: ignore[return-value]
        self._queue.put((kind, item))  # for whoever asks again
        if kind == "error":
            raise item  # type: ignore[misc]
        raise StopIteration

    def close(self) -> None:
        """Let the thread end."""
        self._stopped.set()
        while self._thread is not None and self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.01)

    def _run(self) -> None:
        try:
            for item in self.source:
                self._queue.put(("item", item))
                if self._stopped.is_set():
                    return
        except BaseException as error:  # it is raised in the thread that asks
            self._queue.put(("error", error))
        else:
            self._queue.put(("end", None))
