"""The micro-batcher: decode threads prepare the items of all requests, and one thread computes them in batches.

Items with the same stage and shape share a batch, even if they belong to different requests. Clients take turns by the
seconds of computation that they have used (start-time fair queuing), so one client cannot starve the others. Items of
late or cancelled requests leave the queue before they reach the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from openblip.errors import OpenBlipError, StoppedError
from openblip.io.limits import Limit
from openblip.io.limits import apply as apply_limit
from openblip.serving.admission import CostModel
from openblip.serving.metrics import Metrics

ItemT = TypeVar("ItemT")
PreparedT = TypeVar("PreparedT")
ResultT = TypeVar("ResultT")


class Stage(ABC, Generic[ItemT, PreparedT, ResultT]):
    """A computation that batches run. Stages with equal keys compute the same function.

    Attributes:
        kind: Name in metrics and cost estimates.
        key: Only items of stages with equal keys, and of equal shape, share a batch.
        max_batch: Maximum number of items in a batch.
    """

    kind: str
    key: Hashable
    max_batch: int

    @abstractmethod
    def prepare(self, item: ItemT) -> PreparedT:
        """Decode and tokenize an item, on a decode thread.

        Args:
            item: The item.

        Returns:
            The input of `run`.

        Raises:
            OpenBlipError: The item is invalid.
        """

    def shape(self, prepared: PreparedT) -> Hashable:
        """Return the shape of an item. Only items of one shape share a batch."""
        return ()

    @abstractmethod
    def run(self, batch: list[PreparedT]) -> Sequence[ResultT | OpenBlipError]:
        """Compute a batch, on the compute thread.

        Args:
            batch: Prepared items of one shape.

        Returns:
            A result, or an error, for each item.
        """


@dataclass(eq=False)
class Job:
    """The work of one request.

    Attributes:
        client: Name of the client, for fairness.
        deadline: Monotonic time after which the results are useless.
        cancelled: Whether the client has disconnected.
    """

    client: str
    deadline: float
    cancelled: bool = False

    def is_dead(self) -> bool:
        """Return whether the results are no longer needed."""
        return self.cancelled or time.monotonic() >= self.deadline


@dataclass(eq=False)
class Unit:
    """One item of a job in the queue."""

    job: Job
    stage: Stage[Any, Any, Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    units: float
    seconds: float
    prepared: Any = None
    key: Hashable = None
    order: int = 0
    queued: float = field(default=0.0)

    def deliver(self, outcome: object) -> None:
        """Pass the outcome to the event loop, unless the loop has ended."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.settle, outcome)

    def settle(self, outcome: object) -> None:
        """Set the outcome, on the event loop."""
        if self.future.done():
            return
        if isinstance(outcome, BaseException) and not isinstance(outcome, OpenBlipError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class FairQueue:
    """Waiting units, by client and by batch key. Not thread-safe.

    The virtual time of a client is the estimated seconds that it has used. The client with the lowest virtual time goes
    first. Others that wait for the same computation fill its batch, in the order of their virtual times.
    """

    def __init__(self) -> None:
        self._clients: dict[str, dict[Hashable, deque[Unit]]] = {}
        self._used: dict[str, float] = {}
        self._clock = 0.0
        self._order = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, unit: Unit) -> None:
        """Add a unit."""
        client = unit.job.client
        if client not in self._clients:
            self._clients[client] = {}
            # An idle client does not accumulate credit.
            self._used[client] = max(self._used.get(client, 0.0), self._clock)
        self._order += 1
        unit.order = self._order
        self._clients[client].setdefault(unit.key, deque()).append(unit)
        self._size += 1

    def drop_dead(self) -> list[Unit]:
        """Remove and return the units whose requests have ended."""
        dead = []
        for client in list(self._clients):
            for key in list(self._clients[client]):
                waiting = self._clients[client][key]
                if any(unit.job.is_dead() for unit in waiting):
                    dead += [unit for unit in waiting if unit.job.is_dead()]
                    self._replace(client, key, deque(unit for unit in waiting if not unit.job.is_dead()))
        self._size -= len(dead)
        return dead

    def next_key(self) -> tuple[Hashable, int, int]:
        """Return the next key, the number of units with this key, and the maximum number in a batch."""
        client = min(self._clients, key=self._rank)
        first = min((waiting[0] for waiting in self._clients[client].values()), key=lambda unit: unit.order)
        count = sum(len(keys.get(first.key, ())) for keys in self._clients.values())
        return first.key, count, first.stage.max_batch

    def pop(self, key: Hashable, size: int) -> list[Unit]:
        """Remove and return at most `size` units with a key; clients take turns by their virtual times."""
        batch: list[Unit] = []
        while len(batch) < size:
            clients = [client for client, keys in self._clients.items() if key in keys]
            if not clients:
                break
            client = min(clients, key=self._rank)
            self._clock = max(self._clock, self._used[client])
            waiting = self._clients[client][key]
            unit = waiting.popleft()
            self._used[client] += unit.seconds
            self._replace(client, key, waiting)
            batch.append(unit)
        self._size -= len(batch)
        return batch

    def _rank(self, client: str) -> tuple[float, int]:
        return self._used[client], min(waiting[0].order for waiting in self._clients[client].values())

    def _replace(self, client: str, key: Hashable, waiting: deque[Unit]) -> None:
        if waiting:
            self._clients[client][key] = waiting
            return
        del self._clients[client][key]
        if not self._clients[client]:
            del self._clients[client]
            if len(self._used) > 10_000:  # drop idle clients behind the clock
                self._used = {name: used for name, used in self._used.items() if used > self._clock}


Recorder = Callable[[Stage[Any, Any, Any], list[Any], Sequence[object]], None]
"""Gets each batch with its results, for tests that compute it again."""


class Batcher:
    """Prepares and computes the items of all requests.

    Args:
        metrics: Receives counts and times.
        costs: Receives the seconds of each kind of work.
        workers: Number of decode threads.
        max_wait: Seconds that a batch with free places waits for items that are being received or decoded.
        recorder: Receives each batch.
    """

    def __init__(
        self, metrics: Metrics, costs: CostModel, *, workers: int, max_wait: float, recorder: Recorder | None = None
    ) -> None:
        self._metrics, self._costs, self._max_wait, self._recorder = metrics, costs, max_wait, recorder
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="openblip-decode")
        self._changed = threading.Condition()
        self._queue = FairQueue()
        self._upcoming = 0  # items that are being received or decoded
        self._closed = False
        self._thread = threading.Thread(target=self._compute, name="openblip-compute", daemon=True)
        self._thread.start()

    def expect(self, count: int) -> None:
        """Add to the number of items that are about to enter the queue. A batch waits for them up to `max_wait`."""
        with self._changed:
            self._upcoming += count
            self._changed.notify_all()

    def submit(
        self, job: Job, stage: Stage[ItemT, Any, ResultT], items: Sequence[ItemT], *, units: float = 1.0
    ) -> list[asyncio.Future[ResultT | OpenBlipError]]:
        """Queue items, from the event loop.

        Args:
            job: The request.
            stage: The computation.
            items: Its items.
            units: Size of each item, for the estimate of its seconds.

        Returns:
            A future per item, with its result or its error.
        """
        loop = asyncio.get_running_loop()
        seconds = self._costs.seconds(stage.kind, units)
        futures = []
        self.expect(len(items))
        for item in items:
            unit = Unit(job, stage, loop.create_future(), loop, units, seconds)
            self._metrics.submitted.labels(stage.kind).inc()
            self._pool.submit(self._prepare, unit, item)
            futures.append(unit.future)
        return futures

    def close(self) -> None:
        """Stop all threads. Waiting units get a `StoppedError`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _prepare(self, unit: Unit, item: object) -> None:
        outcome: object = None
        started = time.monotonic()
        try:
            if unit.job.is_dead():
                self._drop([unit])
                return
            unit.prepared = unit.stage.prepare(item)
            unit.key = (unit.stage.key, unit.stage.shape(unit.prepared))
        except Exception as error:
            outcome = error
        finally:
            with self._changed:
                self._upcoming -= 1
                if unit.prepared is not None:
                    unit.queued = time.monotonic()
                    self._queue.push(unit)
                    self._metrics.queue_items.set(len(self._queue))
                self._changed.notify_all()
        self._metrics.phase_seconds.labels("prepare").observe(time.monotonic() - started)
        if outcome is not None:
            self._metrics.dropped.labels("invalid").inc()
            unit.deliver(outcome)

    def _compute(self) -> None:
        while True:
            batch, dead = self._take()
            self._drop(dead)
            if batch:
                self._run(batch)
            elif self._closed:
                return

    def _take(self) -> tuple[list[Unit], list[Unit]]:
        """Wait for work; return a batch, and units whose requests have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue))
            if self._closed:
                units: list[Unit] = []
                while len(self._queue):
                    units += self._queue.pop(self._queue.next_key()[0], 1)
                return [], units
            patience = time.monotonic() + self._max_wait
            dead = self._queue.drop_dead()
            while len(self._queue):
                key, count, size = self._queue.next_key()
                remaining = patience - time.monotonic()
                if count >= size or self._upcoming <= 0 or remaining <= 0 or self._closed:
                    dead += self._queue.drop_dead()
                    batch = self._queue.pop(key, size)
                    self._metrics.queue_items.set(len(self._queue))
                    return batch, dead
                self._changed.wait(remaining)
            self._metrics.queue_items.set(0)
            return [], dead

    def _drop(self, units: Sequence[Unit]) -> None:
        for unit in units:
            reason = "cancelled" if unit.job.cancelled else "closed" if self._closed else "late"
            self._metrics.dropped.labels(reason).inc()
            unit.deliver(StoppedError("the request ended before its turn"))

    def _run(self, batch: list[Unit]) -> None:
        self._drop([unit for unit in batch if unit.job.is_dead()])  # since they left the queue
        batch = [unit for unit in batch if not unit.job.is_dead()]
        if not batch:
            return
        stage, started = batch[0].stage, time.monotonic()
        for unit in batch:
            self._metrics.phase_seconds.labels("queue").observe(started - unit.queued)
        self._metrics.batch_size.labels(stage.kind).observe(len(batch))
        self._metrics.computed.labels(stage.kind).inc(len(batch))
        outcomes: Sequence[object]
        try:
            outcomes = self._call(batch)
        except StoppedError as error:
            self._metrics.stopped.inc()
            outcomes = [error] * len(batch)
        except Exception as error:
            # One bad item must not fail the others.
            outcomes = [error] if len(batch) == 1 else [self._call_alone(unit) for unit in batch]
        elapsed = time.monotonic() - started
        self._metrics.phase_seconds.labels("compute").observe(elapsed)
        self._costs.observe(stage.kind, sum(unit.units for unit in batch), elapsed)
        for unit, outcome in zip(batch, outcomes, strict=True):
            unit.deliver(outcome)

    def _call(self, batch: Sequence[Unit]) -> Sequence[object]:
        """Run a batch until all of its requests have ended."""
        stage, prepared = batch[0].stage, [unit.prepared for unit in batch]

        def run_once() -> Iterator[Sequence[object]]:
            yield stage.run(prepared)

        limit = Limit(stop=lambda: all(unit.job.is_dead() for unit in batch))
        results = next(apply_limit(run_once(), limit))
        if self._recorder is not None:
            self._recorder(stage, prepared, results)
        return results

    def _call_alone(self, unit: Unit) -> object:
        try:
            return self._call([unit])[0]
        except Exception as error:
            return error
