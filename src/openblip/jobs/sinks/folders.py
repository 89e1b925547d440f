"""The metadata files that other programs look for in a folder of pictures."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from typing import IO, Any, ClassVar

from openblip.errors import InputError, JobError
from openblip.jobs.files import replacing
from openblip.jobs.items import Item, place
from openblip.jobs.sinks.base import TextSink, Writing


class FolderSink(TextSink):
    """One file of texts in the folder of the pictures. What else the file says of them, or of others, stays."""

    file_name: ClassVar[str]

    def __init__(self, writing: Writing) -> None:
        super().__init__(writing)
        out = writing.out
        named = out is not None and os.path.splitext(out)[1] == os.path.splitext(self.file_name)[1]  # noqa: PTH122
        self.path = str(out) if named else os.path.join(out or writing.home, self.file_name)  # noqa: PTH118
        self._rows: dict[str, dict[str, Any]] = {}
        self._changed = False
        if os.path.exists(self.path):  # noqa: PTH110
            try:
                with open(self.path, "rb") as file:  # noqa: PTH123
                    self._rows = self.load(file.read().decode("utf-8-sig"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise JobError(f"{self.path} is there, but cannot be read: {error}") from error

    @abstractmethod
    def load(self, text: str) -> dict[str, dict[str, Any]]:
        """What the file says, by picture."""

    @abstractmethod
    def save(self, file: IO[bytes], rows: dict[str, dict[str, Any]]) -> None:
        """Write it all."""

    @property
    def base(self) -> str:
        return os.path.dirname(self.path) or "."  # noqa: PTH120

    @property
    def journal(self) -> str:
        return self.path + ".journal"

    field = "text"

    def current(self, item: Item) -> Any:
        return self._rows.get(self.target(item), {}).get(self.field)

    def put(self, item: Item, content: Any) -> None:
        self._rows.setdefault(self.target(item), {})[self.field] = content
        self._changed = True

    def spot(self, item: Item) -> tuple[str, str]:
        return os.path.abspath(self.path), self.target(item)  # noqa: PTH100

    def edit(self, place: str, key: str, was: str, text: str) -> bool:
        found = self._rows.get(key, {}).get(self.field)
        new = self.edited(found, was, text)
        if new not in (None, found):
            self._rows[key][self.field] = new
            self._changed = True
        return new is not None

    def close(self) -> None:
        if self._changed or not os.path.exists(self.path):  # noqa: PTH110
            with replacing(self.path) as file:
                self.save(file, self._rows)
        self._changed = False


class ImageFolder(FolderSink):
    """``metadata.jsonl`` with ``file_name`` and ``text``, as the ``datasets`` library and our own sources read it."""

    name = "imagefolder"
    file_name = "metadata.jsonl"

    def target(self, item: Item) -> str:
        key = place(item.pictures[0].address, self.base)
        if item.file is None or os.path.isabs(key):  # noqa: PTH117
            raise InputError(f"it does not lie below {self.base}, so that a metadata.jsonl there cannot name it")
        return key

    def load(self, text: str) -> dict[str, dict[str, Any]]:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {row["file_name"]: {n: v for n, v in row.items() if n != "file_name"} for row in rows}

    def save(self, file: IO[bytes], rows: dict[str, dict[str, Any]]) -> None:
        for name, row in rows.items():
            file.write(json.dumps({"file_name": name, **row}, ensure_ascii=False).encode() + b"\n")


class Kohya(FolderSink):
    """The JSON of kohya's sd-scripts: picture to ``{"caption": ...}``; other entries, such as ``tags``, stay.

    A picture is named as these scripts look for it: by its path below the file's folder without its suffix, or, where
    it lies elsewhere, by its whole path.
    """

    name = "kohya"
    file_name = "meta_cap.json"
    field = "caption"

    def target(self, item: Item) -> str:
        if item.file is None:
            raise InputError("it has no file of its own, which kohya's scripts need")
        key = place(item.pictures[0].address, self.base)
        return key if os.path.isabs(key) else os.path.splitext(key)[0]  # noqa: PTH117, PTH122

    def load(self, text: str) -> dict[str, dict[str, Any]]:
        rows = json.loads(text)
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise ValueError("it maps no names to entries")
        return rows

    def save(self, file: IO[bytes], rows: dict[str, dict[str, Any]]) -> None:
        file.write(json.dumps(rows, ensure_ascii=False, indent=2).encode() + b"\n")
