"""Descriptions inside the pictures themselves, where photo libraries and screen readers look for them."""

from __future__ import annotations

import mmap
import os
from typing import Any

from openblip.errors import ImageError, InputError, JobError
from openblip.jobs.files import replacing
from openblip.jobs.items import Item
from openblip.jobs.sinks.base import TextSink, Writing
from openblip.jobs.xmp import read_description, with_description


class Metadata(TextSink):
    """XMP ``dc:description`` and ``AltTextAccessibility`` of JPEG, PNG and WebP files.

    The picture is not encoded again: its compressed data and all other metadata stay as they are, and so does its time
    of change.
    """

    name = "metadata"
    writes_pictures = True

    def __init__(self, writing: Writing) -> None:
        super().__init__(writing)
        if writing.out is not None:
            raise JobError("--to metadata writes into the pictures: it takes no --out")
        self._made: dict[str, tuple[str, bytes]] = {}

    @property
    def base(self) -> str:
        return self.writing.home

    def target(self, item: Item) -> str:
        if item.file is None:
            raise InputError("it has no file of its own to write a description into")
        return os.path.realpath(item.file)

    def current(self, item: Item) -> Any:
        path = self.target(item)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                if not os.fstat(file.fileno()).st_size:
                    return None
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                    return read_description(view)
        except (OSError, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            return None  # it cannot be read: found out, and told, when it is opened

    def foresee(self, item: Item, content: Any) -> str:
        path = self.target(item)
        data = self._build(path, content)
        self._made[path] = (content, data)
        return f"{len(data)}:{os.stat(path).st_mtime_ns}"  # noqa: PTH116

    def put(self, item: Item, content: Any) -> None:
        path = self.target(item)
        text, data = self._made.pop(path, (None, b""))
        if text != content:
            data = self._build(path, content)
        with replacing(path, keep_time=os.stat(path).st_mtime_ns) as file:  # noqa: PTH116
            file.write(data)

    def edit(self, place: str, key: str, was: str, text: str) -> bool:
        try:
            with open(place, "rb") as file:  # noqa: PTH123
                data = file.read()
        except OSError as error:
            raise ImageError(f"cannot read {place}: {error.strerror or error}") from error
        found = read_description(data)
        new = self.edited(found, was, text)
        if new not in (None, found):
            with replacing(place, keep_time=os.stat(place).st_mtime_ns) as out:  # noqa: PTH116
                out.write(with_description(data, new))
        return new is not None

    def _build(self, path: str, content: str) -> bytes:
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                return with_description(file.read(), content)
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
