"""Decisions about the items of a job: skip an item, compute it, restore its output, or report its failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from openblip.data.images import open_image
from openblip.errors import ImageError, JobError, OpenBlipError
from openblip.jobs.files import ItemFileError
from openblip.jobs.items import Item, UnusableItem
from openblip.jobs.journal import Entry
from openblip.jobs.records import Row
from openblip.jobs.sinks.base import Sink


@dataclass(frozen=True)
class Compute:
    """The item has no valid result.

    Attributes:
        previous: Content that was stored for the item before the job started.
        signature: Signature of the image that the result will belong to.
    """

    item: Item
    previous: Any = None
    signature: str = ""


@dataclass(frozen=True)
class Skip:
    """The output of the item does not change.

    Attributes:
        reason: "done" by an earlier run of the job, "existing" before the job, or "edited" since.
        records: Results of the earlier run.
        text: Stored text, if `records` do not contain it.
    """

    item: Item
    reason: Literal["done", "existing", "edited"]
    records: Sequence[Row] = ()
    text: str | None = None


@dataclass(frozen=True)
class Restore:
    """The item has a valid result in the journal, but its output is missing: write `content` again."""

    item: Item
    content: Any
    records: Sequence[Row] = ()
    text: str | None = None


@dataclass(frozen=True)
class Fail:
    """The item cannot be computed, or failed in an earlier run for a reason that still applies.

    Attributes:
        previous: Content that was stored for the item before the job started.
    """

    item: Item | UnusableItem
    error: str
    previous: Any = None


Decision: TypeAlias = "Compute | Skip | Restore | Fail"


def decide(item: Item | UnusableItem, sink: Sink, entries: Mapping[str, Entry]) -> Decision:
    """Decide whether to compute an item.

    Args:
        item: The item.
        sink: The output of the job.
        entries: Entries of the job's journal, by item key.

    Raises:
        JobError: The output cannot be read.
    """
    if isinstance(item, UnusableItem):
        return Fail(item, item.reason)
    try:
        decision = _decide(item, sink, entries.get(item.key))
        if isinstance(decision, (Compute, Restore)):
            sink.check(item)
    except ItemFileError as error:
        return Fail(item, str(error))
    except JobError:
        raise
    except OpenBlipError as error:
        return Fail(item, str(error))
    return decision


def _decide(item: Item, sink: Sink, entry: Entry | None) -> Decision:
    """Decide about a usable item.

    Raises:
        JobError: The output cannot be read.
    """
    signature = item.signature()
    sink.target(item)
    if entry is None:
        content = sink.read(item)
        if sink.options.existing == "skip" and sink.has_result(content):
            return Skip(item, "existing", text=stored_text(content))
        return Compute(item, content, signature)
    if entry.error is not None:
        unchanged = signature and signature == entry.signature and not entry.stale
        if unchanged and not (entry.kind == ImageError.__name__ and can_open(item)):
            return Fail(item, entry.error, entry.previous)
        return Compute(item, entry.previous, signature)
    return _decide_known(item, sink, entry, signature)


def _decide_known(item: Item, sink: Sink, entry: Entry, signature: str) -> Decision:
    """Decide about an item with a result in the journal."""
    content, written_signature, was_edited = replay(item, sink, entry)
    has_our_content = bool(signature) and signature == written_signature  # the result is inside the image file
    if has_our_content and not was_edited:
        return Compute(item, entry.previous, signature) if entry.stale else Skip(item, "done", entry.records)
    unchanged = not entry.stale and (signature == entry.signature or has_our_content)
    records, text = entry.records, None
    if was_edited and unchanged:  # the records hold the model's text
        records, text = (), stored_text(content)
    current = sink.read(item)
    if current is None or sink.equal(current, entry.previous):
        if unchanged:
            return Restore(item, content, records, text)
    elif not sink.equal(current, content) or (was_edited and not unchanged):
        return Skip(item, "edited", text=stored_text(current))
    elif unchanged:
        return Skip(item, "done", records, text)
    return Compute(item, entry.previous, signature)


def replay(item: Item, sink: Sink, entry: Entry) -> tuple[Any, str, bool]:
    """Return the content that the job and the edits of its contact sheets have stored for an item.

    Returns:
        The content, the image's signature after it was written into the image (or ""), and whether an edit changed it.
    """
    content = sink.merge(item, entry.previous, entry.records)
    written_signature, was_edited = entry.written_signature, False
    for edit in entry.edits:
        edited = sink.apply_edit(content, edit.old, edit.new)
        if edited is not None:
            content, written_signature, was_edited = edited, edit.written_signature or written_signature, True
    return content, written_signature, was_edited


def stored_text(content: Any) -> str | None:
    """Return the text of an item's stored content, whose form depends on the format."""
    if isinstance(content, list):
        return "\n".join(str(row["text"]) for row in content if "text" in row) or None
    return None if content is None else str(content)


def can_open(item: Item) -> bool:
    """Return whether an image that failed can be read now, as HEIC can once its library is installed."""
    try:
        for image in item.images:
            open_image(image)
    except OpenBlipError:
        return False
    return True
