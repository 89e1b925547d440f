"""The journal of a run: one JSON line per result, so that a run that stopped can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import DialogItem, Item
from openblip.io import jsonlines

REMEDY = "delete its line to compute it again"


class Journal:
    """Records {"id": ...} in a JSON Lines file, whose first line is the key: the model and the settings.

    A record is on disk when `add` returns. An incomplete last line is dropped.

    Args:
        path: The file; `None` to store nothing.
        key: The model and the settings that the records depend on.

    Raises:
        EvaluationError: If the file has another key, is damaged before its last line, or cannot be written.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path = path
        self.records = _read(path, key) if path is not None else {}
        self._file = None
        if path is not None:
            if not self.records:
                files.write_text(path, json.dumps(key) + "\n")
            try:
                self._file = path.open("ab")
            except OSError as error:
                raise files.unwritable(path, error) from error

    def find(self, item_id: ItemId, digest: str) -> Mapping[str, object] | None:
        """Return the record of an item.

        Args:
            item_id: The id of the item.
            digest: The digest of the content of the item. A record of other content is not returned.

        Returns:
            The record, or `None` if there is none.
        """
        return self.records.get(_record_name({"id": item_id, "of": digest}))

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record.

        Args:
            record: The record, with an "id".

        Raises:
            EvaluationError: If the file cannot be written.
        """
        if self.path is None or self._file is None:
            return
        try:
            jsonlines.append(self._file, [record])
        except OSError as error:
            raise files.unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # add() already raised the error of a record that could not be written
                self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest_item(item: Item) -> str:
    """Return a digest of the input of a prediction: the names of the images, the texts, and the dialog so far."""
    names = [Path(item.image).name, Path(item.second_image).name]
    history = item.history if isinstance(item, DialogItem) else ()
    content = json.dumps([names, item.texts, item.question, item.answers, item.box, history])
    return blake2b(content.encode(), digest_size=8).hexdigest()


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the records of a file by name, and remove an incomplete last line from it."""
    try:
        if not path.is_file():
            return {}
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = list(jsonlines.iter_lines(content))
    incomplete = lines.pop() if lines and not lines[-1].complete else None
    try:
        file_key = files.parse_json(f"{path}:1", lines.pop(0).content.decode())
    except (ValueError, IndexError) as error:
        raise EvaluationError(
            f"{path} is empty, damaged at its start, or not written by an evaluation; delete it, or choose another "
            "folder"
        ) from error
    if file_key != json.loads(json.dumps(key)):
        raise EvaluationError(f"{path} has predictions of another model, preset or set; choose another folder")
    entries = []
    for line in lines:
        location = f"{path}:{line.number}"
        record = _parse_record(location, line.content)
        entries.append((location, _record_name(record), record))
    records = files.index_unique(entries)
    if incomplete is not None:
        files.write_text(path, content[: content.rindex(b"\n") + 1].decode())
    return records


def _parse_record(location: str, line: bytes) -> dict[str, Any]:
    try:
        record = files.parse_json(location, line.decode())
    except ValueError as error:
        raise EvaluationError(f"{location} is damaged ({line[:60]!r}); {REMEDY}") from error
    if not isinstance(record, dict) or "id" not in record:
        raise EvaluationError(f"{location} must be a record with an 'id', got {line[:60]!r}; {REMEDY}")
    return record


def _record_name(record: Mapping[str, Any]) -> str:
    return json.dumps([record["id"], record.get("of")])
