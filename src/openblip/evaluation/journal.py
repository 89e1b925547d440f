"""What an evaluation has found so far, one JSON line each, so that a run that stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items
from openblip.evaluation.tasks.base import Notify, Predict, Predicted

REMEDY = "delete its line, and it is computed again"


class Lines:
    """Records {"id": ...} in a file, the first line of which is the ``key``: what the records were computed by.

    Without a path nothing is known and nothing is kept. Raises :class:`EvaluationError` for a file of another key, for
    one that is damaged before its last line, and where none can be written.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.known = _read(path, key) if path is not None else {}
        self.path = path
        self._file = None
        if path is not None:
            if not self.known:
                files.write_text(path, json.dumps(key) + "\n")
            try:
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise files.unwritable(path, error) from error

    def about(self, item: Item) -> dict[str, Any] | None:
        """The record of an item, if it was made of the same picture, text and answers."""
        return self.known.get(_name({"id": item.id, "of": _digest(item)}))

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record, from now on whatever becomes of this process."""
        if self.path is None or self._file is None:
            return
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            raise files.unwritable(self.path, error) from error

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a record that could not be written, which was told
                self._file.close()


def fill(path: Path | None, key: Mapping[str, Any], items: Items, predict: Predict, notify: Notify) -> Predicted:
    """A text for each item. What is in the file is not computed again; what failed is tried again by the next run.

    An item that has changed since, under the id that it had, is computed anew.
    """
    failed: dict[Any, str] = {}
    with Lines(path, key) as lines:
        found = {item.id: _text(path, record) for item in items if (record := lines.about(item)) is not None}
        missing = [item for item in items if item.id not in found]
        notify(len(found), len(items))
        for item, text in zip(missing, predict(missing) if missing else (), strict=True):
            if isinstance(text, OpenBlipError):
                failed[item.id] = str(text)
            else:
                found[item.id] = text
                lines.add({"id": item.id, "of": _digest(item), "text": text})
            notify(len(found) + len(failed), len(items))
    return Predicted({item.id: found[item.id] for item in items if item.id in found}, failed)


def _text(path: Path | None, record: Mapping[str, Any]) -> Any:
    if not isinstance(text := record.get("text"), str):
        raise EvaluationError(f"{path}: the record of id {record['id']!r} has no 'text'; {REMEDY}")
    return text


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a file holds, by name of id; a last line that was cut off does not count."""
    try:
        if not path.is_file():
            return {}
        whole, _, torn = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    first, *lines = whole.split(b"\n")
    try:
        head = files.parsed(f"{path}:1", first.decode())
    except ValueError as error:
        raise EvaluationError(
            f"{path} is empty, damaged at its beginning, or no evaluation wrote it; delete it, or give another folder"
        ) from error
    if head != json.loads(json.dumps(key)):
        raise EvaluationError(f"{path} holds predictions of another model, preset or set; give another folder")
    records = [(f"{path}:{number}", line) for number, line in enumerate(lines, 2) if line]
    known = files.unique((where, *_record(where, line)) for where, line in records)
    if torn:  # cut off in the middle: forget it, and make room for the next
        files.write_text(path, whole.decode() + "\n")
    return known


def _record(where: str, line: bytes) -> tuple[str, dict[str, Any]]:
    """The name of a line's id, and what it holds."""
    try:
        found = files.parsed(where, line.decode())
    except ValueError as error:
        raise EvaluationError(f"{where} is damaged ({line[:60]!r}); {REMEDY}") from error
    if not isinstance(found, dict) or "id" not in found:
        raise EvaluationError(f"{where} is no record with an 'id' ({line[:60]!r}); {REMEDY}")
    return _name(found), found


def _name(record: Mapping[str, Any]) -> str:
    return json.dumps([record["id"], record.get("of")])


def _digest(item: Item) -> str:
    """What an item is about, wherever its pictures lie."""
    names = [Path(item.image).name, Path(item.second).name]
    told = json.dumps([names, item.texts, item.question, item.answers, item.box])
    return blake2b(told.encode(), digest_size=8).hexdigest()
