"""VisDial v1.0: its file layout, and dialogs as texts (no torch).

The layout is documented at visualdialog.org/data, and read by `visdialch/data/readers.py` of the challenge's starter
code: `{"split", "data": {"questions": [texts], "answers": [texts], "dialogs": [{"image_id", "caption", "dialog":
[{"question", "answer", "answer_options", "gt_index"}]}]}}`. Questions, answers and the 100 options of a round are
indices into the lists of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openblip.errors import InputError


@dataclass(frozen=True)
class Round:
    """A question with its answer, and the options to rank; option number `right` is the answer."""

    question: str
    answer: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Dialog:
    """The caption of an image, and the rounds of a dialog about it."""

    image_id: int
    caption: str
    rounds: tuple[Round, ...]


def is_visdial(content: Any) -> bool:
    """Return whether the content of a JSON file has the layout of VisDial."""
    data = content.get("data") if isinstance(content, Mapping) else None
    return isinstance(data, Mapping) and isinstance(data.get("dialogs"), list)


def image_names(split: str, image_id: int) -> tuple[str, ...]:
    """Return the possible files of a dialog's image: COCO's for training, VisDial's own for the other splits."""
    number = f"{image_id:012d}.jpg"
    if split.startswith("train"):
        return tuple(f"{folder}/COCO_{folder}_{number}" for folder in ("train2014", "val2014"))
    folder = f"VisualDialog_{split.removesuffix('2018')}2018"
    return (f"{folder}/{folder}_{number}",)


def read_dialogs(content: Any) -> Iterator[Dialog | InputError]:
    """Yield the dialogs of a VisDial file in order.

    Args:
        content: The parsed JSON of the file.

    Yields:
        Each dialog, or the error of a dialog that cannot be used.

    Raises:
        InputError: If the content has another layout.
    """
    if not is_visdial(content):
        raise InputError('the file must have the layout of VisDial, {"data": {"questions", "answers", "dialogs"}}')
    data = content["data"]
    for name in ("questions", "answers"):
        if not isinstance(data.get(name), list) or not all(isinstance(text, str) for text in data[name]):
            raise InputError(f"{name!r} must be a list of texts")
    for entry in data["dialogs"]:
        image_id = entry.get("image_id") if isinstance(entry, Mapping) else None
        try:
            yield _parse_dialog(entry, data["questions"], data["answers"])
        except (KeyError, TypeError) as error:
            yield InputError(f"the dialog of image_id {image_id} has a missing or malformed field: {error}")
        except InputError as error:
            yield InputError(f"the dialog of image_id {image_id}: {error}")


def _parse_dialog(entry: Any, questions: Sequence[str], answers: Sequence[str]) -> Dialog:
    rounds = []
    for number, fields in enumerate(entry["dialog"], 1):
        if "answer_options" not in fields or "gt_index" not in fields:
            raise InputError(f"round {number} has no answer to rank, as in the test split")
        options = tuple(_lookup(answers, index) for index in fields["answer_options"])
        answer, right = _lookup(answers, fields["answer"]), fields["gt_index"]
        if not isinstance(right, int) or not 0 <= right < len(options) or options[right] != answer:
            raise InputError(f"round {number}: gt_index must be the index of the answer among the options, got {right}")
        rounds.append(Round(_lookup(questions, fields["question"]), answer, options, right))
    if not isinstance(entry["image_id"], int) or not isinstance(entry["caption"], str):
        raise InputError("'image_id' must be a number and 'caption' a text")
    return Dialog(entry["image_id"], entry["caption"], tuple(rounds))


def _lookup(texts: Sequence[str], index: Any) -> str:
    if not isinstance(index, int) or not 0 <= index < len(texts):
        raise InputError(f"there is no text of number {index}")
    return texts[index]


def dialog_text(history: Sequence[tuple[str, str]], question: str) -> str:
    """Join the previous rounds and a question as LAVIS does: "q: ... a: ... q: ... a:"."""
    rounds = [f"q: {previous} a: {answer}" for previous, answer in history]
    return " ".join([*rounds, f"q: {question} a:"])


def dialog_ids(
    tokenize: Callable[[str], Sequence[int]],
    history: Sequence[tuple[str, str]],
    question: str,
    answers: Sequence[str],
    *,
    first_id: int,
    last_id: int,
    max_tokens: int,
) -> list[list[int]]:
    """Return token ids of a dialog once for each answer to its last question.

    A dialog that is too long loses its beginning, equally for all answers; an answer that is too long by itself loses
    its end.

    Args:
        tokenize: Returns the token ids of a text, without special tokens.
        history: Questions and answers of the previous rounds.
        question: The question of this round.
        answers: Answers to append.
        first_id: First token of every row.
        last_id: Last token of every row.
        max_tokens: Length of a row, special tokens included.

    Returns:
        A row of ids for each answer.
    """
    answer_ids = [list(tokenize(answer))[: max_tokens - 2] for answer in answers]
    context_ids = list(tokenize(dialog_text(history, question)))
    room = max_tokens - 2 - max(map(len, answer_ids), default=0)
    context_ids = context_ids[-room:] if room > 0 else []
    return [[first_id, *context_ids, *ids, last_id] for ids in answer_ids]
