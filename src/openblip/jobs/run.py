"""The run of a job: what is done is skipped, what is left is computed and written, and failures are told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, TypeAlias

from openblip.data.images import open_image
from openblip.errors import ImageError, JobError, OpenBlipError
from openblip.jobs.items import Item, Unusable
from openblip.jobs.journal import Entry, Identity, Journal
from openblip.jobs.records import Row, order_fields
from openblip.jobs.reporting import Reporter
from openblip.jobs.sinks.base import Sink

Result: TypeAlias = "Sequence[Row] | OpenBlipError"
Work: TypeAlias = Callable[[Iterator[Item]], Iterator[Result]]
Action = Literal["compute", "done", "restore", "there", "edited", "failed"]

_NO_MEMORY = (
    "can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc",
)  # fmt: skip
TOGETHER, SECONDS = 4, 0.5  # results are written in groups of this many, or as many as came in this time


@dataclass(frozen=True)
class Seen:
    """What became of an item, for printing and for the sheet: its records, or why there are none."""

    item: Item | Unusable
    action: Action
    records: Sequence[Row] = ()
    error: str | None = None
    text: str | None = None  # what stands in its place, where no record tells


@dataclass
class Outcome:
    """How many items were computed, found done, found there before, left alone as edited, and failed."""

    computed: int = 0
    done: int = 0
    there: int = 0
    edited: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.computed + self.done + self.there + self.edited + self.failed


@dataclass
class Job:
    """One command over many pictures.

    ``work`` is the command: it takes items, and gives for each, in order, the records of its results or an error. It is
    first called when there is something to compute, so it is the place to load a model in. ``identity`` and ``sink``
    say where results go and what tells this job from others; without a sink nothing is written. ``see`` is shown every
    item, in order. ``shrink`` makes the batches of the model smaller, and tells whether they could be.
    """

    items: Iterable[Item | Unusable]
    work: Work
    sink: Sink | None = None
    identity: Identity | None = None
    model: str | None = None
    restart: bool = False
    strict: bool = False
    report: Reporter = field(default_factory=Reporter)
    see: Callable[[Seen], None] = lambda seen: None
    shrink: Callable[[], bool] = lambda: False

    def run(self) -> Outcome:
        """Do what is left of it. Raises :class:`JobError`, or the first bad item's error if ``strict``."""
        if self.sink is None:
            return _Run(self, None).go()
        assert self.identity is not None
        check_targets(self.items, self.sink)
        journal = Journal(self.sink.journal_path, self.identity, restart=self.restart)
        try:
            return _Run(self, journal).go()
        finally:
            journal.close()

    def plan(self) -> Iterator[Seen]:
        """What a run would do, item by item, without doing any of it."""
        if self.sink is not None:
            assert self.identity is not None
            check_targets(self.items, self.sink)
            known = Journal.look(self.sink.journal_path, self.identity, restart=self.restart)
        else:
            known = {}
        for item in self.items:
            yield decide(item, self.sink, known)[0]


def check_targets(items: Iterable[Item | Unusable], sink: Sink) -> None:
    """:class:`JobError` if two items would be written to one place; known before anything is written.

    Items of a stream are not known yet; they are looked at when they come.
    """
    if isinstance(items, Sequence):
        places = _Places(sink)
        for item in items:
            places.take(item)


class _Places:
    """The places that items have taken so far."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._taken: dict[str, str] = {}

    def take(self, item: Item | Unusable) -> None:
        if isinstance(item, Unusable):
            return
        try:
            target = self.sink.target(item)
        except OpenBlipError:
            return  # told when it is its turn
        if (other := self._taken.setdefault(target, item.name)) is not item.name:
            raise JobError(
                f"{other} and {item.name} would both be written to {target}: rename one, or use a list (--to jsonl)"
            )


def decide(item: Item | Unusable, sink: Sink | None, known: dict[str, Entry]) -> tuple[Seen, Any, str]:
    """What is to be done about an item, what stood in its place before the job, and the picture's signature."""
    if isinstance(item, Unusable):
        return Seen(item, "failed", error=item.reason), None, ""
    if sink is None:
        return Seen(item, "compute"), None, ""
    try:
        return _decide(item, sink, known.get(item.key))
    except JobError:
        raise
    except OpenBlipError as error:
        return Seen(item, "failed", error=str(error)), None, ""


def _decide(item: Item, sink: Sink, entry: Entry | None) -> tuple[Seen, Any, str]:
    signature = item.signature()
    sink.target(item)
    if entry is None:
        current = sink.read(item)
        if sink.options.existing == "skip" and sink.has_result(current):
            return Seen(item, "there", text=_told(current)), current, signature
        return Seen(item, "compute"), current, signature
    unchanged = entry.picture == signature and not entry.stale
    if entry.error is not None:
        again = not unchanged or not signature or (entry.kind == ImageError.__name__ and _opens(item))
        return Seen(item, "compute" if again else "failed", error=entry.error), entry.before, signature
    after, written, by_hand = expected(item, sink, entry)
    if signature and signature == written and not by_hand:
        return Seen(item, "compute" if entry.stale else "done", entry.records), entry.before, signature
    unchanged = unchanged or (bool(signature) and signature == written and not entry.stale)
    current = sink.read(item)
    if current is None or sink.equal(current, entry.before):
        action: Action = "restore" if unchanged else "compute"
    elif not sink.equal(current, after) or (by_hand and not unchanged):
        return Seen(item, "edited", text=_told(current)), entry.before, signature
    else:
        action = "done" if unchanged else "compute"
    if by_hand and unchanged:  # the records say what the model said
        return Seen(item, action, text=_told(after)), entry.before, signature
    return Seen(item, action, entry.records), entry.before, signature


def expected(item: Item, sink: Sink, entry: Entry) -> tuple[Any, str, bool]:
    """What the job and the edits written back since have left in an item's place, the signature of its picture if that
    was written into, and whether an edit has a part in it."""
    content, written, by_hand = sink.merge(item, entry.before, entry.records), entry.written, False
    for edit in entry.edits:
        if (new := sink.apply_edit(content, edit.was, edit.text)) is not None:
            content, written, by_hand = new, edit.written or written, True
    return content, written, by_hand


def _told(content: Any) -> str | None:
    if isinstance(content, list):
        return "\n".join(str(row["text"]) for row in content if "text" in row) or None
    return None if content is None else str(content)


def _opens(item: Item) -> bool:
    """Whether a picture that could not be opened can be now, as HEIC can once its library is there."""
    try:
        for picture in item.pictures:
            open_image(picture)
    except OpenBlipError:
        return False
    return True


class _Run:
    """One run of a job."""

    def __init__(self, job: Job, journal: Journal | None) -> None:
        self.job, self.sink, self.journal = job, job.sink, journal
        self.outcome = Outcome()
        self._places = _Places(job.sink) if job.sink and not isinstance(job.items, Sequence) else None
        self._waiting: deque[_Queued] = deque()  # decided, in order; those to compute are with the command
        self._written: list[tuple[Item, Entry, Any]] = []  # results not yet on the disk
        self._since = time.monotonic()

    def go(self) -> Outcome:
        job = self.job
        total = len(job.items) if isinstance(job.items, Sequence) else None
        with job.report.running(total):
            try:
                left = self._left()
                first = next(left, None)
                if first is not None:
                    self._compute(chain([first], left))
                self._pass_on()
            finally:
                self._flush()
            if self.sink is not None and self.journal is not None:
                self.sink.close()
                self.journal.finish(self.outcome.computed + self.outcome.done, self.outcome.failed)
        return self.outcome

    def _left(self) -> Iterator[Item]:
        """The items to compute; all others are settled on the way, and shown when it is their turn."""
        known = self.journal.entries if self.journal else {}
        for item in self.job.items:
            if self._places is not None:
                self._places.take(item)
            seen, before, signature = decide(item, self.sink, known)
            self._waiting.append(_Queued(seen, before, signature))
            if seen.action == "compute":
                assert isinstance(item, Item)
                yield item
            elif not any(queued.seen.action == "compute" for queued in self._waiting):
                self._pass_on()

    def _compute(self, left: Iterator[Item]) -> None:
        """Let the command work; where memory runs out, with smaller batches, from the first item that has no result."""
        results = self.job.work(left)
        while True:
            try:
                result = next(results, None)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                results = self._again(left, error)
                continue
            if result is None:
                return
            self._take(result)

    def _again(self, left: Iterator[Item], error: Exception) -> Iterator[Result]:
        if not self.job.shrink():
            told = next(iter(str(error).splitlines()), type(error).__name__)  # Python's own says nothing
            self._take(ImageError(f"it needs more memory than there is ({told})"))
        handed = [q.seen.item for q in self._waiting if q.seen.action == "compute"]
        return self.job.work(chain((item for item in handed if isinstance(item, Item)), left))

    def _take(self, result: Result) -> None:
        """The result of the first item that waits for one."""
        self._pass_on()
        queued = self._waiting.popleft()
        item = queued.seen.item
        assert isinstance(item, Item)
        if isinstance(result, OpenBlipError):
            entry = Entry(queued.signature, queued.before, error=str(result), kind=type(result).__name__)
        else:
            entry = Entry(queued.signature, queued.before, tuple(self._row(item, row) for row in result))
        if self.sink is not None:
            try:
                self._store(item, entry)
            except JobError:
                raise
            except OpenBlipError as error:  # this one place cannot be written
                entry = Entry(queued.signature, queued.before, error=str(error), kind=type(error).__name__)
                self._store(item, entry)
        if entry.error is None:
            self.outcome.computed += 1
        self._show(Seen(item, "compute", entry.records, entry.error))
        self._pass_on()

    def _store(self, item: Item, entry: Entry) -> None:
        assert self.sink is not None
        records: Sequence[Row] = entry.records
        if entry.error is not None:
            records = [self._row(item, {"error": entry.error})]
        content = self.sink.merge(item, entry.before, records)
        if entry.error is None:
            entry = replace(entry, written=self.sink.signature_after(item, content))
        self._written.append((item, entry, content))
        if len(self._written) >= TOGETHER or time.monotonic() - self._since > SECONDS:
            self._flush()

    def _row(self, item: Item, row: Row) -> Row:
        return order_fields({**item.asked, **row, "model": self.job.model})

    def _flush(self) -> None:
        """Write results: first into the journal, then into their places."""
        group, self._written, self._since = self._written, [], time.monotonic()
        if not group or self.journal is None or self.sink is None:
            return
        self.journal.add((item.key, entry) for item, entry, _ in group)
        for item, entry, content in group:
            if content is not None and not self.sink.equal(content, entry.before):
                self.sink.write(item, content)

    def _pass_on(self) -> None:
        """Show the items at the head that wait for no result."""
        while self._waiting and self._waiting[0].seen.action != "compute":
            queued = self._waiting.popleft()
            seen = queued.seen
            if seen.action == "restore":
                assert isinstance(seen.item, Item)
                assert self.sink is not None
                self.sink.write(seen.item, self._expected(seen.item))
                self.outcome.done += 1
            elif seen.action == "done":
                self.outcome.done += 1
            elif seen.action == "there":
                self.outcome.there += 1
            elif seen.action == "edited":
                self.outcome.edited += 1
            elif self.sink is not None and isinstance(seen.item, Item):
                self._settle_failure(seen, queued)
            self._show(seen)

    def _expected(self, item: Item) -> Any:
        assert self.sink is not None
        assert self.journal is not None
        return expected(item, self.sink, self.journal.entries[item.key])[0]

    def _settle_failure(self, seen: Seen, queued: _Queued) -> None:
        """See to it that a list tells of a failure that an earlier run met."""
        assert isinstance(seen.item, Item)
        assert self.sink is not None
        with suppress(OpenBlipError):
            row = self._row(seen.item, {"error": seen.error})
            content = self.sink.merge(seen.item, queued.before, [row])
            if content is not None and not self.sink.equal(content, self.sink.read(seen.item)):
                self.sink.write(seen.item, content)

    def _show(self, seen: Seen) -> None:
        self.job.report.advance()
        if seen.error is not None:
            self.outcome.failed += 1
            self.job.report.bad(seen.item.name, seen.error)
        elif seen.action == "edited":
            self.job.report.note(f"{seen.item.name}: what was written for it was edited since, and is left as it is")
        self.job.see(seen)
        if seen.error is not None and self.job.strict:
            raise JobError(f"stopped at the first bad picture, {seen.item.name}, as --strict asks")


@dataclass(frozen=True)
class _Queued:
    seen: Seen
    before: Any
    signature: str


def batched(function: Callable[[list[Item]], Sequence[Result]], size: int = 32) -> Work:
    """A command that is a function of a batch, as one of a stream."""

    def work(items: Iterator[Item]) -> Iterator[Result]:
        batch: list[Item] = []
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield from function(batch)
                batch = []
        if batch:
            yield from function(batch)

    return work


def out_of_memory(error: Exception) -> bool:
    """Whether an error, or what it came from, says that memory, of the machine or of a GPU, ran out.

    The words are those of torch's allocators on Linux and macOS, on Windows, of CUDA and MPS, of cuBLAS, and of the C++
    library, whose error OpenVINO passes on.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in _NO_MEMORY):
            return True
        seen.append(cause)
        cause = cause.__cause__
    return False
