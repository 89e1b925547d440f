"""Metadata files that other programs look for in a folder of images."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from typing import IO, ClassVar

from openblip.errors import InputError, JobError
from openblip.io import jsonlines
from openblip.jobs.files import replace_file
from openblip.jobs.items import Item, path_from
from openblip.jobs.records import Row
from openblip.jobs.sinks.base import SinkOptions, TextSink


class FolderSink(TextSink):
    """One file with the texts of a folder. Other fields and other images in the file stay unchanged."""

    file_name: ClassVar[str]
    field: ClassVar[str] = "text"

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(options)
        out = options.out
        names_file = out is not None and os.path.splitext(out)[1] == os.path.splitext(self.file_name)[1]  # noqa: PTH122
        self.path = str(out) if names_file else os.path.join(out or options.home, self.file_name)  # noqa: PTH118
        self._rows: dict[str, Row] = {}
        self._changed = False
        if os.path.exists(self.path):  # noqa: PTH110
            try:
                with open(self.path, "rb") as file:  # noqa: PTH123
                    self._rows = self.parse(file.read().decode("utf-8-sig"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise JobError(f"cannot read the existing file {self.path}: {error}") from error

    @abstractmethod
    def parse(self, text: str) -> dict[str, Row]:
        """Return the entries of an existing file, by image.

        Returns:
            The entries of an existing file, by image.
        """

    @abstractmethod
    def dump(self, file: IO[bytes], rows: dict[str, Row]) -> None:
        """Write all entries."""

    @property
    def base(self) -> str:
        """The folder of the file."""
        return os.path.dirname(self.path) or "."  # noqa: PTH120

    @property
    def journal_path(self) -> str:
        """The path of the journal, next to the file."""
        return self.path + ".journal"

    def read(self, item: Item) -> str | None:
        """Return the stored content of an item."""
        text: str | None = self._rows.get(self.target(item), {}).get(self.field)
        return text

    def write(self, item: Item, content: str) -> None:
        """Store the content of an item."""
        self._rows.setdefault(self.target(item), {})[self.field] = content
        self._changed = True

    def edit_location(self, item: Item) -> tuple[str, str]:
        """Return the file that contains an item's text and the item's key in that file."""
        return os.path.abspath(self.path), self.target(item)  # noqa: PTH100

    def write_edit(self, path: str, key: str, old: str, new: str) -> bool:
        """Replace a stored text that was edited."""
        content = self._rows.get(key, {}).get(self.field)
        edited = self.apply_edit(content, old, new)
        if edited is not None and edited != content:
            self._rows[key][self.field] = edited
            self._changed = True
        return edited is not None

    def close(self) -> None:
        """Write the file if it has changed."""
        if self._changed or not os.path.exists(self.path):  # noqa: PTH110
            with replace_file(self.path) as file:
                self.dump(file, self._rows)
        self._changed = False


class ImageFolderSink(FolderSink):
    """`metadata.jsonl` with `file_name` and `text`, as read by `datasets` and `openblip.data`."""

    name = "imagefolder"
    file_name = "metadata.jsonl"

    def target(self, item: Item) -> str:
        """Return the location an item is written to."""
        key = path_from(item.images[0].address, self.base)
        if item.file is None or os.path.isabs(key):  # noqa: PTH117
            raise InputError(f"the image must be below {self.base} to be listed in its metadata.jsonl")
        return key

    def parse(self, text: str) -> dict[str, Row]:
        """Return the entries of an existing file, by image."""
        rows: dict[str, Row] = {}
        for line in jsonlines.iter_lines(text.encode("utf-8", "surrogateescape")):
            row = jsonlines.decode(line.content)
            rows[row["file_name"]] = {name: value for name, value in row.items() if name != "file_name"}
        return rows

    def dump(self, file: IO[bytes], rows: dict[str, Row]) -> None:
        """Write all entries."""
        for name, row in rows.items():
            file.write(jsonlines.encode({"file_name": name, **row}))


class KohyaSink(FolderSink):
    """The JSON file of kohya's sd-scripts: `{image: {"caption": ...}}`. Other entries, such as `tags`, stay.

    As in those scripts, an image is named by its path below the file's folder, without suffix, or by its absolute path
    if it is outside the folder.
    """

    name = "kohya"
    file_name = "meta_cap.json"
    field = "caption"

    def target(self, item: Item) -> str:
        """Return the location an item is written to."""
        if item.file is None:
            raise InputError("the image must be a file: kohya's scripts cannot load it otherwise")
        key = path_from(item.images[0].address, self.base)
        return key if os.path.isabs(key) else os.path.splitext(key)[0]  # noqa: PTH117, PTH122

    def parse(self, text: str) -> dict[str, Row]:
        """Return the entries of an existing file, by image."""
        rows = json.loads(text)
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise ValueError("the file must map image names to entries")
        return rows

    def dump(self, file: IO[bytes], rows: dict[str, Row]) -> None:
        """Write all entries."""
        file.write(json.dumps(rows, ensure_ascii=False, indent=2).encode() + b"\n")
