"""The record schema: column names and values of a row in JSON, JSONL, CSV, Parquet, a tar's JSON or a hub dataset.

A row is a mapping. A missing column, null, NaN and an empty text mean the same, and so do captions such as "nan",
"NULL" and "None", which other programs write for a missing one. In a CSV file a list is written as JSON or as Python
writes it. Upper case and blanks around the name of a column do not matter. Columns that are not in the schema are
ignored, unless the caller keeps them.

=============  ===============================================  ==================================================
field          column names; the first present one counts       value
=============  ===============================================  ==================================================
image          image, images, file_name, path, image_path,      path below the images folder, absolute path, address;
               filepath, filename, image_name, image_file,      a list of two for a pair
               file, img, img_path, url
pair           left, right                                      an image each, if no column above is present
captions       captions, caption, text, sentence, sentences,    a text or a list of texts; {"raw" | "caption": text}
               comment
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

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from openblip.data.records import Expression, Question
from openblip.errors import InputError

Columns: TypeAlias = Mapping[str, str | Sequence[str]]
Item = TypeVar("Item")

IMAGE_COLUMNS = (
    *("image", "images", "file_name", "path", "image_path", "filepath", "filename"),
    *("image_name", "image_file", "file", "img", "img_path", "url"),
)
_CAPTION_COLUMNS = ("captions", "caption", "text", "sentence", "sentences", "comment")
_ANSWER_COLUMNS = ("answers", "answer", "direct_answers", "multiple_choice_answer")
_QUESTIONS_COLUMNS = ("qa", "questions")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "image": IMAGE_COLUMNS,
    "left": ("left",),
    "right": ("right",),
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
PAIR_COLUMNS = ("left", "right")
# Texts that other programs write for a missing value. The second kind can be an answer.
_MISSING = frozenset({"nan", "NaN", "NAN", "NULL", "null", "<NA>", "NaT", "#N/A"})
_NO_CAPTION = _MISSING | {"None", "none", "N/A", "n/a", "NA", "-nan", "undefined"}
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
    if names := _plain_names(tuple(row)):
        row = {names.get(name, name): value for name, value in row.items()}
        columns = {key: _rename(name, names) for key, name in (columns or {}).items()}
    extra = {name: None if is_missing(row[name]) else row[name] for name in keep if name in row}
    row = _rename_columns(row, columns or {})
    if (error := _first_present(row, ("error",))) is not None:
        raise InputError(f"the row records a failure: {error}")
    image_id = _first_present(row, ("image_id",))
    images = _as_tuple(_first_present(row, IMAGE_COLUMNS))
    if not images:
        pair = tuple(_first_present(row, (side,)) for side in PAIR_COLUMNS)
        images = () if None in pair else pair
    captions: tuple[str, ...] = ()
    if not _text_is_answer(row):
        captions = _parse_texts(_first_present(row, _CAPTION_COLUMNS), "caption", ("raw", "caption", "text"))
    return ParsedRow(
        images=images,
        captions=captions,
        questions=_parse_entries(row, _QUESTIONS_COLUMNS, "question", _parse_question),
        expressions=_parse_entries(row, ("refs",), "expression", _parse_expression),
        label=_parse_label(_first_present(row, ("label",)), len(images)),
        image_id="" if image_id is None else str(image_id),
        filtered=_is_true(row.get("filtered")),
        extra=extra,
    )


def is_missing(value: Any) -> bool:
    """Return whether a value stands for no value: null, NaN, an empty text or list, or a text such as "NULL"."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip() or value.strip() in _MISSING
    return value is None or (isinstance(value, (list, tuple)) and not value)


def known_columns() -> frozenset[str]:
    """Return all names of columns in the schema."""
    fields = (name for names in FIELDS.values() for name in names)
    return frozenset({*fields, *PAIR_COLUMNS, "error", "question_id", "dataset", "auto", "wrong"})


def plain_name(name: str) -> str:
    """Return the name of a column in the form of the schema: lower case, without blanks around it."""
    return "_".join(name.strip().lower().replace("-", " ").split())


@functools.lru_cache(maxsize=1024)
def _plain_names(names: tuple[Any, ...]) -> dict[str, str]:
    """Return the names of the schema for the columns that differ from them only in case and blanks."""
    known = {
        *IMAGE_COLUMNS,
        *_CAPTION_COLUMNS,
        *PAIR_COLUMNS,
        "error",
        *(name for field in FIELDS.values() for name in field),
    }
    plain: dict[str, str] = {}
    for name in names:
        if isinstance(name, str) and name not in known:
            candidate = plain_name(name)
            if candidate in known and candidate not in names and candidate not in plain.values():
                plain[name] = candidate
    return plain


def _flatten(names: Iterable[str | Sequence[str]]) -> list[str]:
    return [one for name in names for one in ([name] if isinstance(name, str) else name)]


def _rename(name: str | Sequence[str], names: Mapping[str, str]) -> str | list[str]:
    return names.get(name, name) if isinstance(name, str) else [names.get(one, one) for one in name]


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
    if any(name not in row for name in _flatten(columns.values())):
        plain = {plain_name(name): name for name in row if isinstance(name, str)}
        own_names = {name: plain[plain_name(name)] for name in _flatten(columns.values()) if plain_name(name) in plain}
        columns = {key: _rename(names, own_names) for key, names in columns.items()}
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
        if not is_missing(value):
            return value
    return None


def _parse_entries(
    row: Mapping[str, Any], names: tuple[str, ...], own: str, parse: Callable[[Mapping[str, Any]], Item]
) -> tuple[Item, ...]:
    """Return the entries of the list in the first of the columns `names`; then the row itself if it has `own`."""
    listed = _first_present(row, names)
    if listed is None:
        listed = []
    elif not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise InputError(f"{names[0]} must be a list of rows, got {_describe_type(listed)}")
    entries = listed if _first_present(row, (own,)) is None else [*listed, row]
    return tuple(parse(entry) for entry in entries)


def _parse_texts(value: Any, kind: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return one or several texts, without blank ones."""
    texts = []
    for entry in _as_tuple(value):
        text = _first_present(entry, keys) if isinstance(entry, Mapping) else entry
        if not is_missing(text):
            texts.append(_parse_text(text, kind))
    return tuple(text for text in texts if kind != "caption" or text.strip() not in _NO_CAPTION)


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
