"""The run of a job over its items, with or without an output to resume from."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal, Protocol, TypeAlias

from openblip.data.skips import Skips
from openblip.errors import ImageError, JobError, OpenBlipError
from openblip.jobs.decisions import Compute, Decision, Fail, Restore, Skip, decide
from openblip.jobs.files import ItemFileError
from openblip.jobs.items import Item, UnusableItem
from openblip.jobs.journal import Entry, Identity, Journal
from openblip.jobs.memory import out_of_memory
from openblip.jobs.records import Row, order_fields
from openblip.jobs.sinks.base import Sink

Items: TypeAlias = "Sequence[Item | UnusableItem] | Iterator[Item | UnusableItem]"
Result: TypeAlias = "Sequence[Row] | OpenBlipError"
Outcome: TypeAlias = Literal["computed", "done", "existing", "edited", "failed"]

FLUSH_COUNT, FLUSH_SECONDS = 4, 0.5  # results are written in groups of this size or age


class Annotator(Protocol):
    """Computes the results of items, at most `batch_size` of them at once."""

    batch_size: int

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield for each item, in order, the records of its results, or its error."""


@dataclass(frozen=True)
class ItemStatus:
    """The state of an item after a run.

    Attributes:
        item: The item.
        outcome: "computed" by this run, "done" by an earlier run, "existing" before the job, "edited" since an earlier
            run, or "failed".
        records: Results of the item.
        error: Reason why the item has no result.
        text: Stored text, if `records` do not contain it.
    """

    item: Item | UnusableItem
    outcome: Outcome
    records: Sequence[Row] = ()
    error: str | None = None
    text: str | None = None


@dataclass
class Run:
    """A run that computes every item and stores nothing.

    Attributes:
        items: The items, in order.
        model: Name of the model, for the records.
        counts: Number of items by outcome.
        has_work: Whether any item must be computed.
    """

    items: Items
    model: str
    counts: Counter[Outcome] = field(default_factory=Counter)
    has_work: bool = True

    def run(self, annotator: Annotator | None) -> Iterator[ItemStatus]:
        """Compute the items, and yield the status of each, in order.

        Args:
            annotator: Computes the results.
        """
        decisions = (Compute(item) if isinstance(item, Item) else Fail(item, item.reason) for item in self.items)
        for decision, result in compute(annotator, decisions):
            if isinstance(decision, Fail):
                status = ItemStatus(decision.item, "failed", error=decision.error)
            elif isinstance(result, OpenBlipError):
                status = ItemStatus(decision.item, "failed", error=str(result))
            else:
                records = [{**decision.item.fields, **row, "model": self.model} for row in result or ()]
                status = ItemStatus(decision.item, "computed", records)
            self.counts[status.outcome] += 1
            yield status


@contextmanager
def open_sink_run(
    items: Items,
    sink: Sink,
    identity: Identity,
    *,
    model: str,
    restart: bool = False,
    skips: Skips | None = None,
) -> Iterator[SinkRun]:
    """Start or resume the run of a job with an output. All results are written at the end of the block.

    Args:
        items: The items, in order.
        sink: Output to write to.
        identity: Command, models and options of the job.
        model: Name of the model, for the records.
        restart: Compute the results of earlier runs again.
        skips: Counts the files that the input passes over, for the journal.

    Raises:
        JobError: Another process is writing to the output.
    """
    journal = Journal(sink.journal_path, identity, restart=restart)
    try:
        run = SinkRun(items, model, sink, journal, skips)
        try:
            yield run
        finally:
            run.flush()
    finally:
        journal.close()


class SinkRun:
    """A run that writes results to a sink, and resumes where earlier runs stopped.

    Every result is added to the journal before it is written to the sink. After a crash, a result is either absent,
    and the next run computes it, or in the journal, and the next run writes it exactly once.

    Attributes:
        items: The items, in order.
        model: Name of the model, for the records.
        counts: Number of items by outcome.
        skips: Counts the files that the input passes over.
    """

    def __init__(self, items: Items, model: str, sink: Sink, journal: Journal, skips: Skips | None = None) -> None:
        self.items = items
        self.skips = skips or Skips()
        self.model = model
        self.counts: Counter[Outcome] = Counter()
        self._sink = sink
        self._journal = journal
        self._decisions = decide_all(items, sink, journal.entries)
        self._unwritten: dict[int, tuple[Item, Entry, Any]] = {}  # by position in `_held`
        self._held: list[ItemStatus] = []  # statuses of items that are written or wait for it, in order
        self._last_flush = time.monotonic()

    @property
    def has_work(self) -> bool:
        """Whether any item must be computed."""
        leading: list[Decision] = []
        for decision in self._decisions:
            leading.append(decision)
            if isinstance(decision, Compute):
                break
        self._decisions = chain(leading, self._decisions)
        return bool(leading) and isinstance(leading[-1], Compute)

    def run(self, annotator: Annotator | None) -> Iterator[ItemStatus]:
        """Carry out all decisions, and yield the status of every item, in order.

        Args:
            annotator: Computes the results. `None` if the run has no work.

        Raises:
            JobError: The output cannot be written.
        """
        for decision, result in compute(annotator, self._decisions):
            self._held.append(self._carry_out(decision, result))
            is_due = len(self._unwritten) >= FLUSH_COUNT or time.monotonic() - self._last_flush > FLUSH_SECONDS
            if is_due or not self._unwritten or self._held[-1].error is not None:
                yield from self._release()
        yield from self._release()
        self._sink.close()
        done, failed = self.counts["computed"] + self.counts["done"], self.counts["failed"]
        self._journal.finish(done, failed, self.skips.totals())

    def flush(self) -> None:
        """Write the results that are not written yet: first to the journal, then to the sink.

        An item whose own file cannot be written fails; the journal keeps its result for the next run.

        Raises:
            JobError: The journal or the output cannot be written.
        """
        group, self._unwritten, self._last_flush = self._unwritten, {}, time.monotonic()
        self._journal.add((item.key, entry) for item, entry, _ in group.values())
        for position, (item, entry, content) in group.items():
            if content is not None and not self._sink.equal(content, entry.previous):
                try:
                    self._sink.write(item, content)
                except ItemFileError as error:
                    self._held[position] = ItemStatus(item, "failed", error=str(error))

    def _release(self) -> Iterator[ItemStatus]:
        """Write the results that are not written yet, and yield the statuses of their items."""
        self.flush()
        statuses, self._held = self._held, []
        for status in statuses:
            self.counts[status.outcome] += 1
            yield status

    def _carry_out(self, decision: Decision, result: Result | None) -> ItemStatus:
        if isinstance(decision, Compute):
            return self._store(decision, [] if result is None else result)
        if isinstance(decision, Skip):
            return ItemStatus(decision.item, decision.reason, decision.records, text=decision.text)
        if isinstance(decision, Restore):
            try:
                self._sink.write(decision.item, decision.content)
            except ItemFileError as error:
                return ItemStatus(decision.item, "failed", error=str(error))
            return ItemStatus(decision.item, "done", decision.records, text=decision.text)
        item = decision.item
        if isinstance(item, Item):
            with suppress(OpenBlipError):  # a list may lack the failure of an earlier run
                content = self._sink.merge(item, decision.previous, [self._complete(item, {"error": decision.error})])
                if content is not None and not self._sink.equal(content, self._sink.read(item)):
                    self._sink.write(item, content)
        return ItemStatus(item, "failed", error=decision.error)

    def _store(self, decision: Compute, result: Result) -> ItemStatus:
        """Add a result, or an error, to the group that `flush` writes."""
        item, previous = decision.item, decision.previous
        error = result if isinstance(result, OpenBlipError) else None
        if not isinstance(result, OpenBlipError):
            entry = Entry(decision.signature, previous, tuple(self._complete(item, row) for row in result))
            try:
                content = self._sink.merge(item, previous, entry.records)
                entry = replace(entry, written_signature=self._sink.signature_after(item, content))
            except JobError:
                raise
            except OpenBlipError as sink_error:
                error = sink_error
        if error is not None:
            entry = Entry(decision.signature, previous, error=str(error), kind=type(error).__name__)
            content = self._sink.merge(item, previous, [self._complete(item, {"error": str(error)})])
        self._unwritten[len(self._held)] = (item, entry, content)
        return ItemStatus(item, "failed" if entry.error is not None else "computed", entry.records, entry.error)

    def _complete(self, item: Item, row: Row) -> Row:
        """Return a record with the fields of its item and the name of the model."""
        return order_fields({**item.fields, **row, "model": self.model})


def decide_all(items: Items, sink: Sink, entries: Mapping[str, Entry]) -> Iterator[Decision]:
    """Yield the decision about each item. Items that would be written to one location fail.

    Args:
        items: The items, in order.
        sink: The output of the job.
        entries: Entries of the job's journal, by item key.
    """
    targets = Targets(sink, items)
    for item in items:
        decision = decide(item, sink, entries)
        if isinstance(decision, (Compute, Restore)):
            peer = targets.find_conflict(decision.item)
            if peer is not None and sink.writes_images:  # two names of one file
                decision = Skip(decision.item, "existing")
            elif peer is not None:
                decision = Fail(decision.item, sink.describe_conflict(decision.item, peer))
        yield decision


class Targets:
    """The output locations of the items of a job, which must differ.

    Args:
        sink: The output of the job.
        items: The items. Those of a stream are known only as they come.
    """

    def __init__(self, sink: Sink, items: Items) -> None:
        self.sink = sink
        self._first: dict[str, Item] = {}
        self._others: dict[str, str] = {}  # by target: the name of another item with the same one
        if isinstance(items, Sequence):
            for item in items:
                self._claim(item)

    def find_conflict(self, item: Item) -> str | None:
        """Return the name of another item with the same location; for an image file, only of an earlier one."""
        target = self._claim(item)
        first = self._first.get(target)
        if first is None:
            return None
        if first.key != item.key:
            return first.name
        return None if self.sink.writes_images else self._others.get(target)

    def _claim(self, item: Item | UnusableItem) -> str:
        if isinstance(item, UnusableItem):
            return ""
        try:
            target = self.sink.target(item)
        except OpenBlipError:
            return ""  # reported as the item's error
        first = self._first.setdefault(target, item)
        if first.key != item.key:
            self._others.setdefault(target, item.name)
        return target


def plan_run(
    items: Items, sink: Sink | None, identity: Identity | None, *, restart: bool = False
) -> Iterator[Decision]:
    """Yield the decision about each item, without carrying it out.

    Args:
        items: The items, in order.
        sink: Output that would be written to, if any.
        identity: Command, models and options of the job; required with a sink.
        restart: Compute the results of earlier runs again.

    Raises:
        JobError: The output cannot be read.
    """
    if sink is None or identity is None:
        for item in items:
            yield Compute(item) if isinstance(item, Item) else Fail(item, item.reason)
        return
    yield from decide_all(items, sink, Journal.read(sink.journal_path, identity, restart=restart))


def compute(annotator: Annotator | None, decisions: Iterable[Decision]) -> Iterator[tuple[Decision, Result | None]]:
    """Yield every decision, in order; with a result where the item is to be computed.

    Where memory runs out, the batch size is halved, and the items without a result are computed again.

    Args:
        annotator: Computes the results. `None` if nothing is to be computed.
        decisions: The decisions, in order.
    """
    if annotator is None:
        for decision in decisions:
            yield decision, None
        return
    waiting: deque[Decision] = deque()
    remaining: Iterator[Decision] = iter(decisions)
    results = annotator.run(_items_to_compute(remaining, waiting))
    while True:
        retry = False
        try:
            result = next(results, None)
        except Exception as error:
            if not out_of_memory(error):
                raise
            retry, result = True, None
            if annotator.batch_size > 1:
                annotator.batch_size //= 2
            else:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                result = ImageError(f"the image needs more memory than there is ({reason})")
        while waiting and not isinstance(waiting[0], Compute):
            yield waiting.popleft(), None
        if result is not None:
            yield waiting.popleft(), result
        elif not retry:
            return
        if retry:
            remaining = chain(tuple(waiting), remaining)
            waiting.clear()
            results = annotator.run(_items_to_compute(remaining, waiting))


def _items_to_compute(decisions: Iterable[Decision], waiting: deque[Decision]) -> Iterator[Item]:
    """Yield the items to compute; every decision is appended to `waiting` first."""
    for decision in decisions:
        waiting.append(decision)
        if isinstance(decision, Compute):
            yield decision.item


class BatchAnnotator:
    """An annotator made of a function from a list of items to their results.

    Args:
        function: Return the result of each item.
        batch_size: Number of items to pass at once.
    """

    def __init__(self, function: Callable[[list[Item]], Sequence[Result]], batch_size: int = 32) -> None:
        self.function = function
        self.batch_size = batch_size

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the result of each item, in order."""
        while batch := list(islice(items, self.batch_size)):
            yield from self.function(batch)
