"""A text file beside each picture, or in a tree of its own that mirrors the pictures'."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from openblip.data.records import PICTURE_SUFFIXES
from openblip.errors import InputError, JobError
from openblip.jobs.files import read_text, write_text
from openblip.jobs.items import Item
from openblip.jobs.records import Row
from openblip.jobs.sinks.base import TextSink, Writing


class Sidecars(TextSink):
    """``photo.jpg`` has its text in ``photo.txt``, one line for each result, ended by a line break."""

    name = "sidecar"

    def __init__(self, writing: Writing) -> None:
        super().__init__(writing)
        if not writing.ext.startswith(".") or "/" in writing.ext or len(writing.ext) < 2:
            raise JobError(f"--ext {writing.ext!r}: write it as .txt")
        if writing.ext.lower() in PICTURE_SUFFIXES:
            raise JobError(f"--ext {writing.ext} is a picture's: the pictures would be overwritten")

    @property
    def base(self) -> str:
        return self.writing.out or self.writing.home

    def target(self, item: Item) -> str:
        if self.writing.out is None:
            if item.file is None:
                raise InputError("it has no place of its own to put a text beside: give --out FOLDER")
            return os.path.splitext(item.file)[0] + self.writing.ext  # noqa: PTH122
        inside = item.inside.replace("\\", "/")
        if inside.startswith("/") or ".." in inside.split("/"):
            raise InputError(f"its text would come to lie outside {self.writing.out}")
        return os.path.join(self.writing.out, os.path.splitext(inside)[0] + self.writing.ext)  # noqa: PTH118, PTH122

    def current(self, item: Item) -> Any:
        return read_text(self.target(item))

    def content(self, item: Item, before: Any, records: Sequence[Row]) -> Any:
        content = super().content(item, before, records)
        return content if content is before or content is None else self.ended(content)

    def ended(self, text: str) -> str:
        return text + "\n"

    def edit(self, place: str, key: str, was: str, text: str) -> bool:
        found = read_text(place)
        new = self.edited(found, was, text)
        if new not in (None, found):
            write_text(place, new)
        return new is not None

    def put(self, item: Item, content: Any) -> None:
        write_text(self.target(item), content)
