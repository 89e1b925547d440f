"""Files of predictions and references, in the formats of the official servers or as JSON lines.

A JSON file holds a list of entries, or an object with the list under the name that the benchmark uses; a JSON-lines
file one entry per line. Which of them a file is shows in what it says, whatever its suffix; the suffix only tells a
lone entry (.jsonl) from an object. Every error names the file and the record.
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
    return unique((where, _id(where, entry, IMAGE), _text(where, entry, "caption")) for where, entry in read(path))


def caption_references(path: Path) -> dict[Any, list[str]]:
    """Reference captions by image: COCO's {"images", "annotations"}, or entries {"image_id", "captions"}.

    In COCO's format the images are in the order of "images", and either none has captions or all have.
    """
    whole = _whole(path)
    if isinstance(whole, Mapping) and "images" in whole:
        return _coco_references(path, whole)
    found: dict[Any, list[str]] = {}
    for where, entry in _entries(path, whole, NAMES):
        texts = entry.get("captions", entry.get("caption", entry.get("references")))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise EvaluationError(f'{where}: no "captions", a list of texts')
        found.setdefault(_id(where, entry, IMAGE), []).extend(texts)
    return found


def _coco_references(path: Path, whole: Mapping[str, Any]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {image: [] for image in coco_images(path, whole)}
    for where, entry in _entries(path, whole, ("annotations",)):
        image = _id(where, entry, ("image_id",))
        if image not in found:
            raise EvaluationError(f"{where}: image_id {image!r} is not among the images")
        found[image].append(_text(where, entry, "caption"))
    if any(found.values()) and (lacking := [image for image, texts in found.items() if not texts]):
        raise EvaluationError(f"{path}: image {lacking[0]!r} has no caption among the annotations")
    return found


def coco_images(path: Path, whole: Any) -> dict[Any, dict[str, Any]]:
    """The "images" of a file in COCO's format, of which ``whole`` is the content, each by its id.

    An image may be listed twice, but not as two different ones.
    """
    images = whole.get("images") if isinstance(whole, Mapping) else None
    if not isinstance(images, list):
        raise EvaluationError(f"{path} is not COCO's format: no 'images', a list of objects with an 'id'")
    listed = [(f"{path}: image {i}", one) for i, one in enumerate(images, 1)]
    named = [(where, _id(where, _object(where, one), ("id",)), one) for where, one in listed]
    first = {key: one for _, key, one in reversed(named)}
    return unique((where, key, one) for where, key, one in named if one is first[key] or one != first[key])


def answers(path: Path) -> dict[Any, str]:
    """Predicted answers by question: entries {"question_id", "answer"}, or A-OKVQA's {id: {"direct_answer"}}."""
    whole = _whole(path)
    if isinstance(whole, Mapping) and all(isinstance(value, Mapping) for value in whole.values()):
        return {key: _text(f"{path}: question {key!r}", value, "direct_answer") for key, value in whole.items()}
    entries = _entries(path, whole, NAMES)
    return unique((where, _id(where, entry, QUESTION), _text(where, entry, "answer")) for where, entry in entries)


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
    return unique(found)


def lists(path: Path, names: Sequence[str]) -> dict[Any, list[Any]]:
    """Ids by query: entries {"query_id", NAME: [...]} for the first of ``names`` that an entry has."""
    found = []
    for where, entry in read(path):
        value = next((entry[name] for name in names if name in entry), None)
        value = value if isinstance(value, list) else None if value is None else [value]
        if value is None or not all(isinstance(one, str | int) and not isinstance(one, bool) for one in value):
            raise EvaluationError(f"{where}: no {' or '.join(map(repr, names))}, a list of ids")
        found.append((where, _id(where, entry, ("query_id", "id")), value))
    return unique(found)


def boxes(path: Path) -> dict[Any, list[float]]:
    """Boxes by expression: entries {"id", "box": [left, top, right, bottom]}."""
    found = []
    for where, entry in read(path):
        box = entry.get("box", entry.get("bbox"))
        if not isinstance(box, list) or len(box) != 4 or not all(type(edge) in (int, float) for edge in box):
            raise EvaluationError(f'{where}: no "box", four numbers')
        found.append((where, _id(where, entry, ("id", "ref_id", "sent_id")), box))
    return unique(found)


NAMES = ("annotations", "questions", "predictions")


def read(path: Path, names: Sequence[str] = NAMES) -> Entries:
    """The entries of a file, each with where it stands."""
    return _entries(path, _whole(path), names)


def read_lines(path: Path) -> Entries:
    """The entries of a JSON-lines file, whatever its suffix, or of a JSON list."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        return _entries(path, parsed(str(path), text), NAMES)
    # Only these end a line: what str.splitlines() also takes for an end, such as U+2028, may stand within a text.
    lines = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(where, _object(where, parsed(where, line))) for where, line in lines]


def load(path: Path) -> Any:
    """A whole JSON file."""
    return parsed(str(path), read_text(path))


def _whole(path: Path) -> Any:
    """A whole JSON file; ``None`` for JSON lines."""
    text = read_text(path)
    return None if _is_lines(path, text) else parsed(str(path), text)


def _is_lines(path: Path, text: str) -> bool:
    """Whether each line is an entry: an entry is an object, so a list is none, nor is what needs several lines."""
    first, _, rest = text.strip().partition("\n")
    named = path.suffix.lower() in (".jsonl", ".ndjson")
    if first.startswith("["):
        return False
    if not rest:
        return named
    if first.startswith("{") and _is_json(first):
        return True
    return named and not _is_json(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _entries(path: Path, whole: Any, names: Sequence[str]) -> Entries:
    if whole is None:
        return read_lines(path)
    found = whole
    if isinstance(whole, Mapping):
        found = next((whole[name] for name in names if name in whole), None)
    if not isinstance(found, list):
        raise EvaluationError(
            f"{path}: neither a list of entries nor an object with {' or '.join(map(repr, names))}, nor JSON lines "
            "(a lone line needs the suffix .jsonl)"
        )
    return [(f"{path}: entry {i}", _object(f"{path}: entry {i}", one)) for i, one in enumerate(found, 1)]


def read_text(path: Path) -> str:
    """A whole file of UTF-8 text, without the mark that some programs put before it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error}") from error


def parsed(where: str, text: str) -> Any:
    """What a JSON text says. Raises :class:`EvaluationError` for one that is broken or names a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for n, key in enumerate(keys) if key in keys[:n])
            raise EvaluationError(f"{where}: {twice!r} is there a second time in one object: {str(pairs[:3])[:80]}")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except EvaluationError:
        raise
    except RecursionError as error:
        raise EvaluationError(f"{where} is nested too deeply to be entries") from error
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
        except (ValueError, RecursionError):
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


def unique(entries: Iterable[tuple[str, Any, Any]]) -> dict[Any, Any]:
    """Values by key, of (where, key, value). Raises :class:`EvaluationError` for a key that is there twice."""
    found: dict[Any, Any] = {}
    for where, key, value in entries:
        if key in found:
            raise EvaluationError(f"{where}: id {key!r} is there a second time")
        found[key] = value
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises :class:`EvaluationError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # a path without a name, or a lone surrogate, is a ValueError
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> EvaluationError:
    """The error for a file that cannot be written; give another path, or make room."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return EvaluationError(f"{path} cannot be written: {reason}")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, as the official servers take it."""
    write_text(path, json.dumps(value, ensure_ascii=False))
