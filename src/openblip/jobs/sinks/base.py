"""The interface between a job and its output."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from openblip.errors import InputError
from openblip.jobs.items import Item
from openblip.jobs.records import Row

Existing = Literal["skip", "overwrite", "append", "prepend"]
ContentT = TypeVar("ContentT")


@dataclass(frozen=True)
class SinkOptions:
    """Location and behavior of a job's output.

    Attributes:
        out: The output file or folder that the user named.
        home: The folder that all images share. Formats that write next to the images store their journal there.
        command: Name of the command, part of the journal's name.
        existing: Action for output that already exists.
        ext: Suffix of sidecar files.
        naming: Name of sidecar files: "stem" for `photo.txt`, "full" for `photo.jpg.txt`.
        separator: Text between several results in one file.
        belongs: Function that returns whether a row of an existing list belongs to this job.
        key_fields: Fields that, with the path, identify an item in a list.
    """

    out: str | None = None
    home: str = "."
    command: str = "caption"
    existing: Existing = "skip"
    ext: str = ".txt"
    naming: Literal["stem", "full"] = "stem"
    separator: str = "\n"
    belongs: Callable[[Mapping[str, Any]], bool] = lambda row: True
    key_fields: Sequence[str] = ()


class BaseSink(ABC, Generic[ContentT]):
    """An output format, which loads the stored content of an item, merges results into it and writes it.

    Contents are JSON values because the journal stores them. A job compares contents to decide whether the output of an
    item is older than the job, written by the job, or edited by a user. Edited output is never overwritten.

    Args:
        options: Location and behavior of the output.

    Raises:
        InputError: The options do not fit the format.
        JobError: Existing output cannot be read.
    """

    name: ClassVar[str]
    writes_images: ClassVar[bool] = False

    def __init__(self, options: SinkOptions) -> None:
        self.options = options

    @property
    @abstractmethod
    def base(self) -> str:
        """The folder that item keys are relative to."""

    @property
    def journal_path(self) -> str:
        """The path of the job's journal."""
        return os.path.join(self.base, f".openblip-{self.options.command}.journal")  # noqa: PTH118

    @abstractmethod
    def target(self, item: Item) -> str:
        """Return the location an item is written to. Items that share one fail.

        Returns:
            The location an item is written to.

        Raises:
            InputError: The item cannot be written in this format.
        """

    def describe_conflict(self, item: Item, peer: str) -> str:
        """Return the reason why an item fails that shares its location with the item named `peer`.

        Returns:
            The reason, with the remedy.
        """
        return f"it and {peer} would both be written to {self.target(item)}: rename one, or write a list (--to jsonl)"

    def check(self, item: Item) -> None:
        """Check, before an item is computed, that its result can be written.

        Raises:
            ItemFileError: The file of the item cannot be written.
            ImageError: The image cannot hold the result.
        """

    @abstractmethod
    def read(self, item: Item) -> ContentT | None:
        """Return the stored content of an item, or `None` if there is none.

        Returns:
            The stored content of an item, or `None` if there is none.
        """

    @abstractmethod
    def merge(self, item: Item, previous: ContentT | None, records: Sequence[Row]) -> ContentT | None:
        """Return the content to store for an item.

        Args:
            item: The item.
            previous: Content that was stored before the job started.
            records: Results of the item, or one record with an `error`.

        Returns:
            The new content, merged with `previous` as `existing` requires. `None` stores nothing.
        """

    @abstractmethod
    def write(self, item: Item, content: ContentT) -> None:
        """Store the content of an item atomically.

        Raises:
            JobError: The output cannot be written.
        """

    def has_result(self, content: ContentT | None) -> bool:
        """Return whether `existing="skip"` keeps this content.

        Returns:
            Whether `existing="skip"` keeps this content.
        """
        return content is not None

    def equal(self, left: ContentT | None, right: ContentT | None) -> bool:
        """Return whether two contents are equal.

        Returns:
            Whether two contents are equal.
        """
        return left == right

    def signature_after(self, item: Item, content: ContentT) -> str:
        """Return the image's signature after `content` is written into it, or `""` if the image stays unchanged.

        Returns:
            The image's signature after `content` is written into it, or `""` if the image stays unchanged.

        Raises:
            ImageError: The content cannot be written into the image.
        """
        return ""

    def edit_location(self, item: Item) -> tuple[str, str]:
        """Return the file that contains an item's text and the item's key in that file, for `write_edit`.

        Returns:
            The file that contains an item's text and the item's key in that file, for `write_edit`.
        """
        return os.path.abspath(self.target(item)), ""  # noqa: PTH100

    @abstractmethod
    def write_edit(self, path: str, key: str, old: str, new: str) -> bool:
        """Replace the text `old` by `new` at an `edit_location`.

        Returns:
            Whether `new` is stored now. `False` if the location contains neither `old` nor `new`.

        Raises:
            JobError: The file cannot be read or written.
            ImageError: The image file cannot be read.
        """

    @abstractmethod
    def apply_edit(self, content: ContentT | None, old: str, new: str) -> ContentT | None:
        """Return `content` with `old` replaced by `new`, or `None` if it contains neither.

        Returns:
            `content` with `old` replaced by `new`, or `None` if it contains neither.
        """

    def close(self) -> None:
        """Write pending output. Formats with one file for all items write it here.

        Raises:
            JobError: The output cannot be written.
        """


Sink: TypeAlias = BaseSink[Any]


class TextSink(BaseSink[str]):
    """A format that stores one text per image. Several results are joined by a separator."""

    def merge(self, item: Item, previous: str | None, records: Sequence[Row]) -> str | None:
        """Return the content to store for an item: its texts, joined as `existing` requires."""
        texts = [row["text"] for row in records if "error" not in row]
        return self.join(previous, texts) if texts else previous

    def join(self, previous: str | None, texts: Sequence[str]) -> str:
        """Return `texts` joined with the previous text as `existing` requires.

        Returns:
            `texts` joined with the previous text as `existing` requires.
        """
        existing = self.options.existing
        previous_texts = []
        if previous and existing in ("append", "prepend"):
            previous_texts = [previous.rstrip("\r\n")]
        ordered = [*texts, *previous_texts] if existing == "prepend" else [*previous_texts, *texts]
        return self.options.separator.join(ordered)

    def apply_edit(self, content: str | None, old: str, new: str) -> str | None:
        """Return the content with an edit applied."""
        text = (content or "").strip()
        if text == old.strip() != new.strip():
            return self.format_text(new.strip())
        return content if text == new.strip() else None

    def format_text(self, text: str) -> str:
        """Return a text in its stored form.

        Returns:
            A text in its stored form.
        """
        return text

    def has_result(self, content: str | None) -> bool:
        """Return whether `existing="skip"` keeps this content."""
        return bool(content and content.strip())


def output_file(options: SinkOptions, suffixes: Sequence[str]) -> str:
    """Return `--out` of a format that writes one file.

    Returns:
        `--out` of a format that writes one file.

    Raises:
        InputError: `--out` is missing or has another suffix.
    """
    if options.out is None:
        raise InputError(f"this format requires --out, for example --out results{suffixes[0]}")
    if not options.out.lower().endswith(tuple(suffixes)):
        raise InputError(f"--out must end in {' or '.join(suffixes)}, got {options.out}")
    return options.out
