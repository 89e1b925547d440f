"""Text files next to the images, or in a separate tree with the same structure."""

from __future__ import annotations

import os
from collections.abc import Sequence

from openblip.data.images import IMAGE_SUFFIXES
from openblip.errors import InputError
from openblip.jobs.files import read_text, write_text
from openblip.jobs.items import Item
from openblip.jobs.records import Row
from openblip.jobs.sinks.base import SinkOptions, TextSink


class SidecarSink(TextSink):
    """One text file per image: `photo.txt` for `photo.jpg`, with a line break at the end."""

    name = "sidecar"

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(options)
        ext = options.ext
        if not ext.startswith(".") or "/" in ext or len(ext) < 2:
            raise InputError(f"--ext must be a suffix such as .txt, got {ext!r}")
        if ext.lower() in IMAGE_SUFFIXES:
            raise InputError(f"--ext must not be an image suffix, got {ext}: texts would overwrite images")

    @property
    def base(self) -> str:
        return self.options.out or self.options.home

    def target(self, item: Item) -> str:
        """Return the location an item is written to."""
        if self.options.out is None:
            if item.file is None:
                raise InputError("the image must be a file: use --out FOLDER to write the texts to a folder")
            return os.path.splitext(item.file)[0] + self.options.ext  # noqa: PTH122
        inside = item.inner_path.replace("\\", "/")
        if inside.startswith("/") or ".." in inside.split("/"):
            raise InputError(f"the text would be written outside {self.options.out}")
        return os.path.join(self.options.out, os.path.splitext(inside)[0] + self.options.ext)  # noqa: PTH118, PTH122

    def read(self, item: Item) -> str | None:
        """Return the stored content of an item."""
        return read_text(self.target(item))

    def merge(self, item: Item, previous: str | None, records: Sequence[Row]) -> str | None:
        """Return the content to store for an item."""
        content = super().merge(item, previous, records)
        return content if content is previous or content is None else self.format_text(content)

    def format_text(self, text: str) -> str:
        """Return a text in its stored form."""
        return text + "\n"

    def write(self, item: Item, content: str) -> None:
        """Store the content of an item."""
        write_text(self.target(item), content)

    def write_edit(self, path: str, key: str, old: str, new: str) -> bool:
        """Replace a stored text that was edited."""
        content = read_text(path)
        edited = self.apply_edit(content, old, new)
        if edited is not None and edited != content:
            write_text(path, edited)
        return edited is not None
