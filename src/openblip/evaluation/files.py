"""Read predictions and references, in the formats of the official servers or as JSON lines.

A JSON file has a list of entries, or an object with the list under the benchmark's name for it. A JSON Lines file has
one entry per line. The content decides which of the two a file is; the suffix only distinguishes a single entry
(.jsonl) from an object (.json). Every error names the file and the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.answers import AnswerReference
from openblip.evaluation.metrics.ids import Id, ItemId
from openblip.io import atomic, jsonlines

Entry = dict[str, Any]
Entries = list[tuple[str, Entry]]  # (location, entry): the location is for error messages
Value = TypeVar("Value")

LIST_NAMES = ("annotations", "questions", "predictions")  # where an object may have its list of entries
IMAGE_NAMES = ("image_id", "id", "image")
QUESTION_NAMES = ("question_id", "id")


def read_captions(path: Path) -> dict[ItemId, str]:
    """Read predicted captions: entries {"image_id", "caption"}, as the COCO and NoCaps servers accept them.

    Args:
        path: A JSON or JSON Lines file.

    Returns:
        The caption of each image.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if an image occurs twice.
    """
    return index_unique(
        (location, _get_id(location, entry, IMAGE_NAMES), _get_text(location, entry, "caption"))
        for location, entry in read_entries(path)
    )


def read_caption_references(path: Path) -> dict[ItemId, list[str]]:
    """Read reference captions: COCO's {"images", "annotations"}, or entries {"image_id", "captions"}.

    Args:
        path: A JSON or JSON Lines file. In COCO's format, either all images have captions or none has.

    Returns:
        The captions of each image; for COCO's format in the order of "images".

    Raises:
        EvaluationError: If the file or an entry cannot be read.
    """
    content = _read_json_or_lines(path)
    if isinstance(content, Mapping) and "images" in content:
        return _read_coco_references(path, content)
    references: dict[ItemId, list[str]] = {}
    for location, entry in _list_entries(path, content, LIST_NAMES):
        texts = entry.get("captions", entry.get("caption", entry.get("references")))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise EvaluationError(f'{location}: "captions" must be a list of texts')
        references.setdefault(_get_id(location, entry, IMAGE_NAMES), []).extend(texts)
    return references


def _read_coco_references(path: Path, content: Mapping[str, Any]) -> dict[ItemId, list[str]]:
    references: dict[ItemId, list[str]] = {image: [] for image in index_coco_images(path, content)}
    for location, entry in _list_entries(path, content, ("annotations",)):
        image = _get_id(location, entry, ("image_id",))
        if image not in references:
            raise EvaluationError(f"{location}: image_id {image!r} is not among the images")
        references[image].append(_get_text(location, entry, "caption"))
    without_captions = [image for image, texts in references.items() if not texts]
    if without_captions and any(references.values()):
        raise EvaluationError(f"{path}: image {without_captions[0]!r} has no caption among the annotations")
    return references


def index_coco_images(path: Path, content: object) -> dict[ItemId, Entry]:
    """Return the "images" of a file in COCO's format by id.

    Args:
        path: The path of the file, for error messages.
        content: The content of the file.

    Returns:
        The entry of each image. An image may be listed twice if both entries are equal.

    Raises:
        EvaluationError: If the content is not in COCO's format, or if two different images have the same id.
    """
    images = content.get("images") if isinstance(content, Mapping) else None
    if not isinstance(images, list):
        raise EvaluationError(f"{path} must be in COCO's format, with 'images', a list of objects with an 'id'")
    indexed: dict[ItemId, Entry] = {}
    for number, value in enumerate(images, 1):
        location = f"{path}: image {number}"
        entry = _check_object(location, value)
        key = _get_id(location, entry, ("id",))
        if indexed.setdefault(key, entry) != entry:
            raise EvaluationError(f"{location}: id {key!r} occurs a second time")
    return indexed


def read_answers(path: Path) -> dict[ItemId, str]:
    """Read predicted answers: entries {"question_id", "answer"}, or A-OKVQA's {id: {"direct_answer"}}.

    Args:
        path: A JSON or JSON Lines file.

    Returns:
        The answer to each question.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if a question occurs twice.
    """
    content = _read_json_or_lines(path)
    if isinstance(content, Mapping) and all(isinstance(value, Mapping) for value in content.values()):
        return {key: _get_text(f"{path}: question {key!r}", value, "direct_answer") for key, value in content.items()}
    return index_unique(
        (location, _get_id(location, entry, QUESTION_NAMES), _get_text(location, entry, "answer"))
        for location, entry in _list_entries(path, content, LIST_NAMES)
    )


def read_answer_references(path: Path) -> dict[ItemId, AnswerReference]:
    """Read people's answers: the VQA challenge's {"annotations"}, or entries with "answers" or "answer".

    Args:
        path: A JSON or JSON Lines file.

    Returns:
        The answers to each question, with the types of the question if the file has them.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if a question occurs twice.
    """
    references = []
    for location, entry in read_entries(path, ("annotations",)):
        value = entry.get("answers", entry.get("direct_answers", entry.get("answer")))
        answers = value if isinstance(value, list) else [value]
        values = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in answers]
        texts = [text for text in values if isinstance(text, str)]
        if not texts or len(texts) < len(values):
            raise EvaluationError(f'{location}: "answers" must be a list of texts')
        types = str(entry.get("question_type", "")), str(entry.get("answer_type", ""))
        references.append((location, _get_id(location, entry, QUESTION_NAMES), AnswerReference(texts, *types)))
    return index_unique(references)


def read_id_lists(path: Path, name: str) -> dict[ItemId, list[ItemId]]:
    """Read lists of ids: entries {"query_id", NAME: [ids]}.

    Args:
        path: A JSON or JSON Lines file.
        name: The name of the list in an entry, such as "ranking". A single id is a list of one.

    Returns:
        The ids of each query.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if a query occurs twice.
    """
    lists = []
    for location, entry in read_entries(path):
        value = entry.get(name)
        values = value if isinstance(value, list) else [value]
        ids = [result for result in values if isinstance(result, str | int) and not isinstance(result, bool)]
        if len(ids) < len(values):
            raise EvaluationError(f"{location}: {name!r} must be a list of ids")
        lists.append((location, _get_id(location, entry, ("query_id", "id")), ids))
    return index_unique(lists)


def read_boxes(path: Path) -> dict[ItemId, list[float]]:
    """Read boxes: entries {"id", "box": [left, top, right, bottom]}.

    Args:
        path: A JSON or JSON Lines file.

    Returns:
        The box of each expression.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if an expression occurs twice.
    """
    boxes = []
    for location, entry in read_entries(path):
        box = entry.get("box", entry.get("bbox"))
        if not isinstance(box, list) or len(box) != 4 or not all(type(edge) in (int, float) for edge in box):
            raise EvaluationError(f'{location}: "box" must be four numbers')
        boxes.append((location, _get_id(location, entry, ("id", "ref_id", "sent_id")), box))
    return index_unique(boxes)


def read_entries(path: Path, names: Sequence[str] = LIST_NAMES) -> Entries:
    """Read the entries of a JSON or JSON Lines file.

    Args:
        path: The file.
        names: Where an object may have its list of entries.

    Returns:
        The location of each entry, for error messages, and the entry.

    Raises:
        EvaluationError: If the file cannot be read or has another form.
    """
    return _list_entries(path, _read_json_or_lines(path), names)


def read_json_lines(path: Path) -> Entries:
    """Read the entries of a JSON Lines file, with any suffix, or of a JSON list.

    Args:
        path: The file.

    Returns:
        The location of each entry, for error messages, and the entry.

    Raises:
        EvaluationError: If the file cannot be read or has another form.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return _list_entries(path, parse_json(str(path), text), LIST_NAMES)
    entries = []
    # Not str.splitlines: it also splits at characters that a text may contain, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            location = f"{path}:{number}"
            entries.append((location, _check_object(location, parse_json(location, line))))
    return entries


def read_json(path: Path) -> object:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        EvaluationError: If the file cannot be read, is not JSON, or has an object with the same key twice.
    """
    return parse_json(str(path), read_text(path))


def _read_json_or_lines(path: Path) -> object:
    """Return the content of a JSON file, or `None` for JSON Lines."""
    text = read_text(path)
    return None if _is_json_lines(path, text) else parse_json(str(path), text)


def _is_json_lines(path: Path, text: str) -> bool:
    """Return whether each line is an entry: an object on one line."""
    line, _, remaining = text.strip().partition("\n")
    has_suffix = path.suffix.lower() in (".jsonl", ".ndjson")
    if line.startswith("["):
        return False
    if not remaining:
        return has_suffix
    if line.startswith("{") and _is_json(line):
        return True
    return has_suffix and not _is_json(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _list_entries(path: Path, content: object, names: Sequence[str]) -> Entries:
    if content is None:
        return read_json_lines(path)
    entries = content
    if isinstance(content, Mapping):
        entries = next((content[name] for name in names if name in content), None)
    if not isinstance(entries, list):
        raise EvaluationError(
            f"{path} must be a list of entries, an object with {' or '.join(map(repr, names))}, or JSON lines "
            "(a single line needs the suffix .jsonl)"
        )
    locations = [f"{path}: entry {number}" for number in range(1, len(entries) + 1)]
    return [(location, _check_object(location, entry)) for location, entry in zip(locations, entries, strict=True)]


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, without the byte order mark that some programs write.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        EvaluationError: If the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error}") from error


def parse_json(location: str, text: str) -> object:
    """Parse a JSON text.

    Args:
        location: Where the text is, for error messages.
        text: The text.

    Returns:
        Its value.

    Raises:
        EvaluationError: If the text is not JSON, or has an object with the same key twice.
    """

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            repeated = next(name for i, name in enumerate(names) if name in names[:i])
            raise EvaluationError(f"{location}: {repeated!r} occurs twice in one object: {str(pairs[:3])[:80]}")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=build_object)
    except EvaluationError:
        raise
    except RecursionError as error:
        raise EvaluationError(f"{location} is nested too deeply to be entries") from error
    except ValueError as error:
        hint = _describe_truncation(text) if text.lstrip().startswith(("[", "{")) else ""
        raise EvaluationError(f"{location} is not JSON, or was cut off: {error}{hint}") from error


def _describe_truncation(text: str) -> str:
    """Return the number of complete entries of a truncated list, and the last of them, for the error message."""
    decoder, start, count, previous = json.JSONDecoder(), text.find("[") + 1, 0, ""
    while start > 0:
        start += len(text[start:]) - len(text[start:].lstrip(" \n\r\t,"))
        try:
            entry, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            break
        count, previous, start = count + 1, json.dumps(entry, ensure_ascii=False)[:100], end
    return f"; complete entries: {count}, the last is {previous}" if count else ""


def _check_object(location: str, value: object) -> Entry:
    if not isinstance(value, dict):
        raise EvaluationError(f"{location} must be an object, got {str(value)[:60]}")
    return value


def _get_id(location: str, entry: Mapping[str, Any], names: Sequence[str]) -> ItemId:
    for name in names:
        value = entry.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool):
            return value
    raise EvaluationError(f"{location} has no {' or '.join(map(repr, names))}")


def _get_text(location: str, entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise EvaluationError(f"{location} has no {name!r}, a text")
    return value


def index_unique(entries: Iterable[tuple[str, Id, Value]]) -> dict[Id, Value]:
    """Return values by id.

    Args:
        entries: The location, for error messages, the id and the value of each entry.

    Returns:
        The values by id.

    Raises:
        EvaluationError: If an id occurs twice.
    """
    values: dict[Id, Value] = {}
    for location, key, value in entries:
        if key in values:
            raise EvaluationError(f"{location}: id {key!r} occurs a second time")
        values[key] = value
    return values


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all.

    Args:
        path: The file. Its folder is created.
        text: The text.

    Raises:
        EvaluationError: If the file cannot be written.
    """
    try:
        atomic.write_text(path, text)
    except (OSError, ValueError) as error:  # a path without a name, or a lone surrogate, is a ValueError
        raise unwritable(path, error) from error


def write_json(path: Path, value: object) -> None:
    """Write a JSON file on one line, completely or not at all.

    Args:
        path: The file. Its folder is created.
        value: The value.

    Raises:
        EvaluationError: If the file cannot be written.
    """
    write_text(path, json.dumps(value, ensure_ascii=False))


def write_json_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write a JSON Lines file, completely or not at all.

    Args:
        path: The file. Its folder is created.
        records: The records.

    Raises:
        EvaluationError: If the file cannot be written.
    """
    write_text(path, "".join(f"{jsonlines.dumps(record)}\n" for record in records))


def unwritable(path: Path, error: Exception) -> EvaluationError:
    """Return the error for a file that cannot be written.

    Args:
        path: The file.
        error: Why it cannot be written.

    Returns:
        The error.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return EvaluationError(f"{path} cannot be written: {reason}")
