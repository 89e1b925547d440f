"""What an evaluation has found so far, one JSON line each, so that a run that stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Items
from openblip.evaluation.tasks.base import Notify, Predict, Predicted


class Lines:
    """Records {"id": ...} in a file, the first line of which is the ``key``: what the records were computed by.

    Without a path nothing is known and nothing is kept. Raises :class:`EvaluationError` for a file of another key.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.known = _read(path, key) if path is not None else {}
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self.known:
                files.write_text(path, json.dumps(key) + "\n")
            self._file = path.open("a", encoding="utf-8")

    def get(self, key: Any) -> dict[str, Any] | None:
        """The record of an id."""
        return self.known.get(_name(key))

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record, from now on whatever becomes of this process."""
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def fill(path: Path | None, key: Mapping[str, Any], items: Items, predict: Predict, notify: Notify) -> Predicted:
    """A text for each item. What is in the file is not computed again; what failed is tried again by the next run."""
    failed: dict[Any, str] = {}
    with Lines(path, key) as lines:
        found = {item.id: record["text"] for item in items if (record := lines.get(item.id)) is not None}
        missing = [item for item in items if item.id not in found]
        notify(len(found), len(items))
        for item, text in zip(missing, predict(missing) if missing else (), strict=True):
            if isinstance(text, OpenBlipError):
                failed[item.id] = str(text)
            else:
                found[item.id] = text
                lines.add({"id": item.id, "text": text})
            notify(len(found) + len(failed), len(items))
    return Predicted({item.id: found[item.id] for item in items if item.id in found}, failed)


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a file holds, by name of id; a last line that was cut off does not count."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    if json.loads(lines[0]) != json.loads(json.dumps(key)):
        raise EvaluationError(f"{path} holds predictions of another model, preset or set; give another folder")
    if lines[-1]:  # cut off in the middle: forget it, and make room for the next
        lines.pop()
        files.write_text(path, "".join(f"{line}\n" for line in lines))
    return {_name(one["id"]): one for one in map(json.loads, filter(None, lines[1:]))}


def _name(key: Any) -> str:
    return json.dumps(key)
