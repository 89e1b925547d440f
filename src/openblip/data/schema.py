"""The record schema: the names that a row of JSON, JSONL, CSV, Parquet, a tar's JSON or a hub dataset may use.

Every row is a mapping. A name may be missing, or its value null, NaN or an empty text, which is the same. In a CSV file
a list is written as JSON. Other columns are ignored, unless the caller keeps them.

=============  ===============================================  ==================================================
field          names, the first that is there counts            value
=============  ===============================================  ==================================================
picture        image, images, file_name, path, image_path,      path from the images folder, absolute path, address;
               filepath, filename, url                          a list of two for a pair
pair           left, right                                      a picture each, where none is named as above
captions       captions, caption, text, sentence, sentences     a text or a list of texts; {"raw" | "caption": text}
question       question (question_id, dataset, auto, wrong)     a text; wrong lists answers that are not right
answers        answers, answer, direct_answers,                 a text or a list, one for each person; {"answer": text}
               multiple_choice_answer
questions      qa, questions                                    a list of rows with question and answers
box            expression, bbox                                 a text; [left, top, width, height] in pixels
boxes          refs                                             a list of rows with expression and bbox
label          label                                            True, False, 0, 1, "True", "False": a pair's statement
image id       image_id                                         anything: equal for rows of one embedded picture
error          error                                            a text: the job that wrote the row failed; skipped
=============  ===============================================  ==================================================

This covers the layouts of the published annotation files and of this program's own results (``path``, ``text``; the
``text`` of a row that has a ``question`` and no answer by another name is the answer).
``columns`` maps a field's first name to the column that a user's file has instead, such as ``{"caption": "title"}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from openblip.data.records import Expression, Question
from openblip.errors import InputError

Columns: TypeAlias = Mapping[str, str | Sequence[str]]
Made = TypeVar("Made")

PICTURE = ("image", "images", "file_name", "path", "image_path", "filepath", "filename", "url")
_CAPTIONS = ("captions", "caption", "text", "sentence", "sentences")
_ANSWERS = ("answers", "answer", "direct_answers", "multiple_choice_answer")
_QUESTIONS = ("qa", "questions")
_FIELDS = {
    "image": PICTURE,
    "caption": _CAPTIONS,
    "question": ("question",),
    "answer": _ANSWERS,
    "qa": _QUESTIONS,
    "expression": ("expression",),
    "bbox": ("bbox",),
    "refs": ("refs",),
    "label": ("label",),
    "image_id": ("image_id",),
}
_LABELS = {"true": 1, "false": 0, "1": 1, "0": 0}


@dataclass(frozen=True)
class ParsedRow:
    """What a row says, apart from the pictures themselves: ``pictures`` holds their names as they stand in the row."""

    images: tuple[Any, ...] = ()
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    expressions: tuple[Expression, ...] = ()
    label: int | None = None
    image_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def check_columns(columns: Columns) -> None:
    """``InputError`` if a key is no field of the schema."""
    if unknown := sorted(set(columns) - set(_FIELDS)):
        raise InputError(f"columns name unknown fields {unknown}; fields are {', '.join(_FIELDS)}")


def parse(row: Mapping[str, Any], columns: Columns | None = None, keep: Iterable[str] = ()) -> ParsedRow:
    """Read one row; ``InputError`` that says what is wrong with it, else whatever of the schema is there."""
    if not isinstance(row, Mapping):
        raise InputError(f"a record is a row of named fields, not {_kind(row)}")
    extra = {name: row[name] for name in keep if name in row}
    row = _named(row, columns or {})
    if (error := _first(row, ("error",))) is not None:
        raise InputError(f"the row records a failure: {error}")
    image_id = _first(row, ("image_id",))
    images = _several(_first(row, PICTURE)) or _pair(row)
    return ParsedRow(
        images=images,
        captions=() if _answers_itself(row) else _texts(_first(row, _CAPTIONS), "caption", ("raw", "caption", "text")),
        questions=_questions(row),
        expressions=_expressions(row),
        label=_label(_first(row, ("label",)), len(images)),
        image_id="" if image_id is None else str(image_id),
        extra=extra,
    )


# --- fields -------------------------------------------------------------------------------------------------------


def _pair(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The two images of a row that names them one by one."""
    images = tuple(_first(row, (side,)) for side in ("left", "right"))
    return () if None in images else images


def _questions(row: Mapping[str, Any]) -> tuple[Question, ...]:
    asked = _rows(row, _QUESTIONS, _question)
    return asked if _first(row, ("question",)) is None else (*asked, _question(row))


def _question(row: Mapping[str, Any]) -> Question:
    number = _first(row, ("question_id",))
    return Question(
        text=_text(_first(row, ("question",)), "question"),
        answers=_texts(_first(row, ("text",) if _answers_itself(row) else _ANSWERS), "answer", ("answer",)),
        source=str(_first(row, ("dataset",)) or ""),
        id=number if number is None or isinstance(number, int) else str(number),
        auto=_true(row.get("auto")),
        wrong=_texts(_first(row, ("wrong",)), "answer", ("answer",)),
    )


def _answers_itself(row: Mapping[str, Any]) -> bool:
    """Whether it is a row of our own results: a question whose answer is its text."""
    alone = _first(row, _ANSWERS) is None and _first(row, _CAPTIONS[:2]) is None
    return alone and _first(row, ("question",)) is not None and isinstance(row.get("text"), str)


def _expressions(row: Mapping[str, Any]) -> tuple[Expression, ...]:
    listed = _rows(row, ("refs",), _ref)
    return listed if _first(row, ("expression",)) is None else (*listed, _ref(row))


def _ref(row: Mapping[str, Any]) -> Expression:
    expression = _text(_first(row, ("expression",)), "expression")
    box = _first(row, ("bbox",))
    try:
        left, top, width, height = (float(number) for number in box)
    except (TypeError, ValueError):
        raise InputError(f"bbox is [left, top, width, height], four numbers, not {box!r}") from None
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        raise InputError(f"bbox is [left, top, width, height] with a positive size, not {box!r}")
    return Expression(expression, (left, top, left + width, top + height), _true(row.get("auto")))


def _label(value: Any, pictures: int) -> int | None:
    label = None if value is None else _LABELS.get(str(value).strip().lower())
    if label is None and value is not None and pictures == 2:  # any other data set's "label" means something else
        raise InputError(f"label is True or False, 1 or 0, not {value!r}")
    return label


# --- values -------------------------------------------------------------------------------------------------------


def _named(row: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """The row with the user's columns under the schema's names, which hides what else stood under these."""
    if not columns:
        return row
    wanted = [name for given in columns.values() for name in ([given] if isinstance(given, str) else given)]
    if missing := [name for name in wanted if name not in row]:
        raise InputError(f"the row has no {missing[0]!r}; it has {', '.join(map(str, row)) or 'nothing'}")
    hidden = {name for key in columns for name in _FIELDS[key]}
    renamed = {name: value for name, value in row.items() if name not in hidden}
    for key, given in columns.items():
        renamed[_FIELDS[key][0]] = row[given] if isinstance(given, str) else [row[name] for name in given]
    return renamed


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        value = row.get(name)
        if not _absent(value):
            return value
    return None


def _absent(value: Any) -> bool:
    empty = isinstance(value, (str, list, tuple)) and not value
    return value is None or empty or (isinstance(value, float) and math.isnan(value))


def _rows(
    row: Mapping[str, Any], names: tuple[str, ...], read: Callable[[Mapping[str, Any]], Made]
) -> tuple[Made, ...]:
    listed = _first(row, names)
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise InputError(f"{names[0]} is a list of rows, not {_kind(listed)}")
    return tuple(read(one) for one in listed)


def _texts(value: Any, what: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """One or several texts; blank ones are left out."""
    given = [_first(one, keys) if isinstance(one, Mapping) else one for one in _several(value)]
    texts = [_text(one, what) for one in given if one is not None]
    return tuple(text for text in texts if text.strip())


def _text(value: Any, what: str) -> str:
    if what == "answer" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{what} is a text, not {_kind(value)}" if value is not None else f"there is no {what}")
    return value


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _true(value: Any) -> bool:
    return _LABELS.get(str(value).strip().lower()) == 1


def _kind(value: Any) -> str:
    names = {"dict": "a mapping", "list": "a list", "int": "a number", "float": "a number", "str": "a text"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")
