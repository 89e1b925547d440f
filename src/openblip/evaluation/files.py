"""Files of predictions and references, in the formats of the official servers or as JSON lines.

A JSON file holds a list of entries, or an object with the list under the name that the benchmark uses; a JSON-lines
file one entry per line. Every error names the file and the record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.answers import Reference

Entries = list[tuple[str, dict[str, Any]]]  # where each one stands, and what it says


def captions(path: Path) -> dict[Any, str]:
    """Predicted captions by image: entries {"image_id", "caption"}, as the COCO and NoCaps servers take them."""
    return _unique((where, _id(where, entry, IMAGE), _text(where, entry, "caption")) for where, entry in read(path))


def caption_references(path: Path) -> dict[Any, list[str]]:
    """Reference captions by image: COCO's {"images", "annotations"}, or entries {"image_id", "captions"}.

    In COCO's format the images are in the order of "images", and ids without captions are left out if all are.
    """
    whole = load(path) if path.suffix == ".json" else None
    if isinstance(whole, Mapping) and "images" in whole:
        found: dict[Any, list[str]] = {
            _id(f"{path}: image {i + 1}", one, ("id",)): [] for i, one in enumerate(whole["images"])
        }
        for where, entry in _entries(path, whole, ("annotations",)):
            image = _id(where, entry, ("image_id",))
            if image not in found:
                raise EvaluationError(f"{where}: image_id {image!r} is not among the images")
            found[image].append(_text(where, entry, "caption"))
        return found
    found = {}
    for where, entry in read(path):
        texts = entry.get("captions", entry.get("caption", entry.get("references")))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise EvaluationError(f'{where}: no "captions", a list of texts')
        found.setdefault(_id(where, entry, IMAGE), []).extend(texts)
    return found


def answers(path: Path) -> dict[Any, str]:
    """Predicted answers by question: entries {"question_id", "answer"}, or A-OKVQA's {id: {"direct_answer"}}."""
    whole = load(path) if path.suffix == ".json" else None
    if isinstance(whole, Mapping) and all(isinstance(value, Mapping) for value in whole.values()):
        return {key: _text(f"{path}: question {key!r}", value, "direct_answer") for key, value in whole.items()}
    return _unique((where, _id(where, entry, QUESTION), _text(where, entry, "answer")) for where, entry in read(path))


def answer_references(path: Path) -> dict[Any, Reference]:
    """People's answers by question: the VQA challenge's {"annotations"}, or entries with "answers" or "answer"."""
    found = []
    for where, entry in read(path, ("annotations",)):
        given = entry.get("answers", entry.get("direct_answers", entry.get("answer")))
        listed = given if isinstance(given, list) else [given]
        said = [one.get("answer") if isinstance(one, Mapping) else one for one in listed]
        texts = [text for text in said if isinstance(text, str)]
        if not texts or len(texts) < len(said):
            raise EvaluationError(f'{where}: no "answers", a list of texts')
        kinds = str(entry.get("question_type", "")), str(entry.get("answer_type", ""))
        found.append((where, _id(where, entry, QUESTION), Reference(texts, *kinds)))
    return _unique(found)


def lists(path: Path, names: Sequence[str]) -> dict[Any, list[Any]]:
    """Ids by query: entries {"query_id", NAME: [...]} for the first of ``names`` that an entry has."""
    found = []
    for where, entry in read(path):
        value = next((entry[name] for name in names if name in entry), None)
        value = value if isinstance(value, list) else None if value is None else [value]
        if value is None or not all(isinstance(one, str | int) for one in value):
            raise EvaluationError(f"{where}: no {' or '.join(map(repr, names))}, a list of ids")
        found.append((where, _id(where, entry, ("query_id", "id")), value))
    return _unique(found)


def boxes(path: Path) -> dict[Any, list[float]]:
    """Boxes by expression: entries {"id", "box": [left, top, right, bottom]}."""
    found = []
    for where, entry in read(path):
        box = entry.get("box", entry.get("bbox"))
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
            raise EvaluationError(f'{where}: no "box", four numbers')
        found.append((where, _id(where, entry, ("id", "ref_id", "sent_id")), box))
    return _unique(found)


def read(path: Path, names: Sequence[str] = ("annotations", "questions", "predictions")) -> Entries:
    """The entries of a file, each with where it stands."""
    if path.suffix == ".jsonl":
        return read_lines(path)
    return _entries(path, load(path), names)


def read_lines(path: Path) -> Entries:
    """The entries of a JSON-lines file, whatever its suffix."""
    lines = [(f"{path}:{number}", line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    return [(where, _object(where, _parsed(where, line))) for where, line in lines]


def load(path: Path) -> Any:
    """A whole JSON file."""
    return _parsed(str(path), read_text(path))


def _entries(path: Path, whole: Any, names: Sequence[str]) -> Entries:
    found = whole
    if isinstance(whole, Mapping):
        found = next((whole[name] for name in names if name in whole), None)
    if not isinstance(found, list):
        raise EvaluationError(f"{path}: neither a list of entries nor an object with {' or '.join(map(repr, names))}")
    return [(f"{path}: entry {i}", _object(f"{path}: entry {i}", one)) for i, one in enumerate(found, 1)]


def read_text(path: Path) -> str:
    """A whole file of UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error}") from error


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        hint = last_whole_entry(text) if text.lstrip().startswith(("[", "{")) else ""
        raise EvaluationError(f"{where} is not JSON, or was cut off: {error}{hint}") from error


def last_whole_entry(text: str) -> str:
    """Where a truncated list broke off, for the error: the number of whole entries and the last one."""
    decoder, at, count, last = json.JSONDecoder(), text.find("[") + 1, 0, ""
    while at > 0:
        at += len(text[at:]) - len(text[at:].lstrip(" \n\r\t,"))
        try:
            entry, end = decoder.raw_decode(text, at)
        except ValueError:
            break
        count, last, at = count + 1, json.dumps(entry, ensure_ascii=False)[:100], end
    return f"; {count} whole entries, the last is {last}" if count else ""


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvaluationError(f"{where} is not an object: {str(value)[:60]}")
    return value


IMAGE = ("image_id", "id", "image")
QUESTION = ("question_id", "id")


def _id(where: str, entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if isinstance(found := entry.get(name), int | str) and not isinstance(found, bool):
            return found
    raise EvaluationError(f"{where} has no {' or '.join(map(repr, names))}")


def _text(where: str, entry: Mapping[str, Any], name: str) -> str:
    if not isinstance(found := entry.get(name), str):
        raise EvaluationError(f"{where} has no {name!r}, a text")
    return found


def _unique(entries: Iterable[tuple[str, Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for where, key, value in entries:
        if key in found:
            raise EvaluationError(f"{where}: id {key!r} is there a second time")
        found[key] = value
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, as the official servers take it."""
    write_text(path, json.dumps(value, ensure_ascii=False))
