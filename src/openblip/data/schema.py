"""The record schema: column names and values of a row in JSON, JSONL, CSV, Parquet, a tar's JSON or a hub dataset.

A row is a mapping. A missing column, null, NaN and an empty text mean the same. In a CSV file a list is written as
JSON. Columns that are not in the schema are ignored, unless the caller keeps them.

=============  ===============================================  ==================================================
field          column names; the first present one counts       value
=============  ===============================================  ==================================================
image          image, images, file_name, path, image_path,      path below the images folder, absolute path, address;
               filepath, filename, url                          a list of two for a pair
pair           left, right                                      an image each, if no column above is present
captions       captions, caption, text, sentence, sentences     a text or a list of texts; {"raw" | "caption": text}
question       question (question_id, dataset, auto, wrong)     a text; wrong lists answers that are not right
answers        answers, answer, direct_answers,                 a text or a list, one per person; {"answer": text}
               multiple_choice_answer
questions      qa, questions                                    a list of rows with question and answers
box            expression, bbox                                 a text; [left, top, width, height] in pixels
boxes          refs                                             a list of rows with expression and bbox
label          label                                            True, False, 0, 1, "True", "False": a pair's statement
image id       image_id                                         anything: equal for rows of one embedded image
error          error                                            a text: the job that wrote the row failed; skipped
filtered       filtered                                         true: a filter kept no text; left out without notice
=============  ===============================================  ==================================================

The schema covers the published annotation files and the results of OpenBLIP's own jobs (`path`, `text`; in a row with
a `question` and no answer under another name, `text` is the answer). `columns` maps a field's first name to the
column of a user's file, such as `{"caption": "title"}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from openblip.data.records import Expression, Question
from openblip.errors import InputError

Columns: TypeAlias = Mapping[str, str | Sequence[str]]
Item = TypeVar("Item")

IMAGE_COLUMNS = ("image", "images", "file_name", "path", "image_path", "filepath", "filename", "url")
_CAPTION_COLUMNS = ("captions", "caption", "text", "sentence", "sentences")
_ANSWER_COLUMNS = ("answers", "answer", "direct_answers", "multiple_choice_answer")
_QUESTIONS_COLUMNS = ("qa", "questions")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "image": IMAGE_COLUMNS,
    "caption": _CAPTION_COLUMNS,
    "question": ("question",),
    "answer": _ANSWER_COLUMNS,
    "qa": _QUESTIONS_COLUMNS,
    "expression": ("expression",),
    "bbox": ("bbox",),
    "refs": ("refs",),
    "label": ("label",),
    "image_id": ("image_id",),
}
_LABELS = {"true": 1, "false": 0, "1": 1, "0": 0}


@dataclass(frozen=True)
class ParsedRow:
    """The content of a row; `images` holds the values of the image column, not yet resolved."""

    images: tuple[Any, ...] = ()
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    expressions: tuple[Expression, ...] = ()
    label: int | None = None
    image_id: str = ""
    filtered: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def check_columns(columns: Columns) -> None:
    """Raise `InputError` if `columns` maps a name that is not a field of the schema."""
    if unknown := sorted(set(columns) - set(FIELDS)):
        raise InputError(f"columns must map fields of the schema ({', '.join(FIELDS)}), got {', '.join(unknown)}")


def parse_row(row: Mapping[str, Any], columns: Columns | None = None, keep: Iterable[str] = ()) -> ParsedRow:
    """Parse one row.

    Args:
        row: Values by column.
        columns: The column of a field, by the field's first name, where it differs from the schema.
        keep: Further columns to keep in `extra`.

    Returns:
        The fields present in the row.

    Raises:
        InputError: If the row is not a mapping, records a failure, lacks a mapped column, or holds a wrong value.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"a record must be a mapping of columns to values, got {_describe_type(row)}")
    extra = {name: row[name] for name in keep if name in row}
    row = _rename_columns(row, columns or {})
    if (error := _first_present(row, ("error",))) is not None:
        raise InputError(f"the row records a failure: {error}")
    image_id = _first_present(row, ("image_id",))
    images = _as_tuple(_first_present(row, IMAGE_COLUMNS))
    if not images:
        pair = tuple(_first_present(row, (side,)) for side in ("left", "right"))
        images = () if None in pair else pair
    captions: tuple[str, ...] = ()
    if not _text_is_answer(row):
        captions = _parse_texts(_first_present(row, _CAPTION_COLUMNS), "caption", ("raw", "caption", "text"))
    return ParsedRow(
        images=images,
        captions=captions,
        questions=_parse_questions(row),
        expressions=_parse_expressions(row),
        label=_parse_label(_first_present(row, ("label",)), len(images)),
        image_id="" if image_id is None else str(image_id),
        filtered=_is_true(row.get("filtered")),
        extra=extra,
    )


def _parse_questions(row: Mapping[str, Any]) -> tuple[Question, ...]:
    listed = _parse_rows(row, _QUESTIONS_COLUMNS, _parse_question)
    return listed if _first_present(row, ("question",)) is None else (*listed, _parse_question(row))


def _parse_question(row: Mapping[str, Any]) -> Question:
    question_id = _first_present(row, ("question_id",))
    answers = _first_present(row, ("text",) if _text_is_answer(row) else _ANSWER_COLUMNS)
    return Question(
        text=_parse_text(_first_present(row, ("question",)), "question"),
        answers=_parse_texts(answers, "answer", ("answer",)),
        source=str(_first_present(row, ("dataset",)) or ""),
        id=question_id if question_id is None or isinstance(question_id, int) else str(question_id),
        auto=_is_true(row.get("auto")),
        wrong=_parse_texts(_first_present(row, ("wrong",)), "answer", ("answer",)),
    )


def _text_is_answer(row: Mapping[str, Any]) -> bool:
    """Return whether the row is a result of `openblip ask`: a question whose answer is its text."""
    has_text = _first_present(row, _ANSWER_COLUMNS) is None and _first_present(row, _CAPTION_COLUMNS[:2]) is None
    return has_text and _first_present(row, ("question",)) is not None and isinstance(row.get("text"), str)


def _parse_expressions(row: Mapping[str, Any]) -> tuple[Expression, ...]:
    listed = _parse_rows(row, ("refs",), _parse_expression)
    return listed if _first_present(row, ("expression",)) is None else (*listed, _parse_expression(row))


def _parse_expression(row: Mapping[str, Any]) -> Expression:
    text = _parse_text(_first_present(row, ("expression",)), "expression")
    bbox = _first_present(row, ("bbox",))
    try:
        x, y, width, height = (float(number) for number in bbox)
    except (TypeError, ValueError):
        raise InputError(f"bbox must be four numbers, [left, top, width, height], got {bbox!r}") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise InputError(f"bbox must be [left, top, width, height] with a positive size, got {bbox!r}")
    return Expression(text, (x, y, x + width, y + height), _is_true(row.get("auto")))


def _parse_label(value: Any, num_images: int) -> int | None:
    label = None if value is None else _LABELS.get(str(value).strip().lower())
    if label is None and value is not None and num_images == 2:  # a single image's "label" has another meaning
        raise InputError(f"label must be True or False, 1 or 0, got {value!r}")
    return label


def _rename_columns(row: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """Return the row with the user's columns under the schema's names, and without those they replace."""
    if not columns:
        return row
    for names in columns.values():
        for name in [names] if isinstance(names, str) else names:
            if name not in row:
                raise InputError(f"the row has no {name!r}; it has {', '.join(map(str, row)) or 'nothing'}")
    replaced = {name for key in columns for name in FIELDS[key]}
    renamed = {name: value for name, value in row.items() if name not in replaced}
    for key, names in columns.items():
        renamed[FIELDS[key][0]] = row[names] if isinstance(names, str) else [row[name] for name in names]
    return renamed


def _first_present(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        value = row.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, (str, list, tuple)) and not value:
            continue
        return value
    return None


def _parse_rows(
    row: Mapping[str, Any], names: tuple[str, ...], parse: Callable[[Mapping[str, Any]], Item]
) -> tuple[Item, ...]:
    listed = _first_present(row, names)
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise InputError(f"{names[0]} must be a list of rows, got {_describe_type(listed)}")
    return tuple(parse(entry) for entry in listed)


def _parse_texts(value: Any, kind: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return one or several texts, without blank ones."""
    texts = []
    for entry in _as_tuple(value):
        text = _first_present(entry, keys) if isinstance(entry, Mapping) else entry
        if text is not None:
            texts.append(_parse_text(text, kind))
    return tuple(text for text in texts if text.strip())


def _parse_text(value: Any, kind: str) -> str:
    if kind == "answer" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise InputError(f"there is no {kind}")
    if not isinstance(value, str):
        raise InputError(f"{kind} must be a text, got {_describe_type(value)}")
    return value


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_true(value: Any) -> bool:
    return _LABELS.get(str(value).strip().lower()) == 1


def _describe_type(value: Any) -> str:
    names = {"dict": "a mapping", "list": "a list", "int": "a number", "float": "a number", "str": "a text"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")
