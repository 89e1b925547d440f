"""What a job asks of a place for results."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from openblip.errors import JobError
from openblip.jobs.items import Item
from openblip.jobs.records import Row

Existing = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class Writing:
    """Where and how: ``out`` is the file or folder that the user named, ``home`` the folder that the pictures share.

    ``existing`` says what becomes of a text that is there already; ``ext`` and ``separator`` are for texts in files.
    For lists, ``concerns`` tells the rows that answer to this job from those of others, such as other questions, and
    ``asked`` names the fields that tell items of one picture apart.
    """

    out: str | None = None
    home: str = "."
    command: str = "caption"
    existing: Existing = "skip"
    ext: str = ".txt"
    separator: str = "\n"
    concerns: Callable[[Mapping[str, Any]], bool] = lambda row: True
    asked: Sequence[str] = ()


class Sink(ABC):
    """A place for results: what stands there for an item, what should, and how to put it there.

    Contents are JSON values, so that the journal can hold them. A job compares them: what it finds in the place of an
    item is what was there before, or what the job put there, or an edit by somebody, which it leaves alone.
    """

    name: ClassVar[str]
    writes_pictures: ClassVar[bool] = False

    def __init__(self, writing: Writing) -> None:
        self.writing = writing

    @property
    @abstractmethod
    def base(self) -> str:
        """The folder that keys of items are told from."""

    @property
    def journal(self) -> str:
        """Where the journal lies."""
        return os.path.join(self.base, f".openblip-{self.writing.command}.journal")  # noqa: PTH118

    @abstractmethod
    def target(self, item: Item) -> str:
        """The place of an item, which no other may share; ``InputError`` if it can have none."""

    @abstractmethod
    def current(self, item: Item) -> Any:
        """What stands there now, or ``None``."""

    @abstractmethod
    def content(self, item: Item, before: Any, records: Sequence[Row]) -> Any:
        """What should stand there, given what stood there before the job; of a failure too."""

    @abstractmethod
    def put(self, item: Item, content: Any) -> None:
        """Put it there, whole or not at all."""

    def taken(self, content: Any) -> bool:
        """Whether what stands there is a result that ``existing="skip"`` respects."""
        return content is not None

    def same(self, one: Any, other: Any) -> bool:
        """Whether two contents are equal."""
        return bool(one == other)

    def foresee(self, item: Item, content: Any) -> str:
        """The signature that the picture will have with ``content`` in it; empty if no picture changes."""
        return ""

    def spot(self, item: Item) -> tuple[str, str]:
        """What :meth:`edit` needs to find an item again: a file, and what the file calls the item."""
        return os.path.abspath(self.target(item)), ""  # noqa: PTH100

    @abstractmethod
    def edit(self, place: str, key: str, was: str, text: str) -> bool:
        """Put ``text`` where :meth:`spot` says, if ``was`` or itself is there; False if it is something else."""

    @abstractmethod
    def edited(self, content: Any, was: str, text: str) -> Any:
        """What :meth:`edit` makes of a content; ``None`` if it says neither ``was`` nor ``text``."""

    def close(self) -> None:  # noqa: B027 (most have nothing left to do)
        """Write what is written as a whole."""


class TextSink(Sink):
    """A place that holds one text for a picture; several results are lines of it."""

    def content(self, item: Item, before: Any, records: Sequence[Row]) -> Any:
        texts = [row["text"] for row in records if "error" not in row]
        if not texts:
            return before
        return self.joined(before, texts)

    def joined(self, before: str | None, texts: list[str]) -> str:
        """The texts, joined to what was there as ``existing`` says."""
        old = [(before or "").rstrip("\n")] if before and self.writing.existing in ("append", "prepend") else []
        parts = [*texts, *old] if self.writing.existing == "prepend" else [*old, *texts]
        return self.writing.separator.join(parts)

    def edited(self, content: Any, was: str, text: str) -> Any:
        found = (content or "").strip()
        if found == was.strip() != text.strip():
            return self.ended(text.strip())
        return content if found == text.strip() else None

    def ended(self, text: str) -> str:
        """A text as it stands in its place."""
        return text

    def taken(self, content: Any) -> bool:
        return bool(content and content.strip())


def file_named(writing: Writing, suffixes: Sequence[str]) -> str:
    """The ``--out`` of a format that is one file."""
    if writing.out is None:
        raise JobError(f"name the file to write: --out results{suffixes[0]}")
    if not writing.out.lower().endswith(tuple(suffixes)):
        raise JobError(f"{writing.out} does not end in {' or '.join(suffixes)}")
    return writing.out
