"""Dialogs about pictures, as VisDial v1.0 has them, and how they become one text (no torch).

The layout is that of visualdialog.org/data (read there by visdialch/data/readers.py of the challenge's starter code):
``{"split", "data": {"questions": [texts], "answers": [texts], "dialogs": [{"image_id", "caption", "dialog":
[{"question", "answer", "answer_options", "gt_index"}]}]}}``, where questions, answers and the 100 options of a round
are numbers of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openblip.errors import InputError


@dataclass(frozen=True)
class Round:
    """A question with its ``answer`` and the ``options`` to rank, of which number ``right`` is the answer."""

    question: str
    answer: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Dialog:
    """A picture's caption, and what was asked about it, round after round."""

    image_id: int
    caption: str
    rounds: tuple[Round, ...]


def is_visdial(content: Any) -> bool:
    """Whether a JSON file's content has the layout of VisDial."""
    data = content.get("data") if isinstance(content, Mapping) else None
    return isinstance(data, Mapping) and isinstance(data.get("dialogs"), list)


def image_names(split: str, image_id: int) -> tuple[str, ...]:
    """The files that may be the picture of a dialog: COCO's to train on, those taken for VisDial else."""
    number = f"{image_id:012d}.jpg"
    if split.startswith("train"):
        return tuple(f"{part}/COCO_{part}_{number}" for part in ("train2014", "val2014"))
    part = f"VisualDialog_{split.removesuffix('2018')}2018"
    return (f"{part}/{part}_{number}",)


def read_dialogs(content: Any) -> Iterator[Dialog | InputError]:
    """The dialogs of a VisDial file in their order, or what is wrong with one of them.

    Raises :class:`InputError` for content of another layout.
    """
    if not is_visdial(content):
        raise InputError('not the layout of VisDial, {"data": {"questions", "answers", "dialogs"}}')
    data = content["data"]
    for name in ("questions", "answers"):
        if not isinstance(data.get(name), list) or not all(isinstance(text, str) for text in data[name]):
            raise InputError(f"{name!r} is not a list of texts")
    yield from (_dialog_or_error(entry, data["questions"], data["answers"]) for entry in data["dialogs"])


def _dialog_or_error(entry: Any, questions: Sequence[str], answers: Sequence[str]) -> Dialog | InputError:
    image = entry.get("image_id") if isinstance(entry, Mapping) else None
    try:
        return _dialog(entry, questions, answers)
    except (KeyError, TypeError) as error:
        return InputError(f"the dialog of image_id {image} lacks something, or has another form: {error}")
    except InputError as error:
        return InputError(f"the dialog of image_id {image}: {error}")


def _dialog(entry: Any, questions: Sequence[str], answers: Sequence[str]) -> Dialog:
    rounds = []
    for number, one in enumerate(entry["dialog"], 1):
        if "answer_options" not in one or "gt_index" not in one:
            raise InputError(f"round {number} has no answer to rank, as in the test split")
        options = tuple(_text(answers, place) for place in one["answer_options"])
        answer, right = _text(answers, one["answer"]), one["gt_index"]
        if not isinstance(right, int) or not 0 <= right < len(options) or options[right] != answer:
            raise InputError(f"round {number}: gt_index {right} is not the place of its answer among the options")
        rounds.append(Round(_text(questions, one["question"]), answer, options, right))
    if not isinstance(entry["image_id"], int) or not isinstance(entry["caption"], str):
        raise InputError("'image_id' is a number and 'caption' a text")
    return Dialog(entry["image_id"], entry["caption"], tuple(rounds))


def _text(texts: Sequence[str], place: Any) -> str:
    if not isinstance(place, int) or not 0 <= place < len(texts):
        raise InputError(f"there is no text of number {place}")
    return texts[place]


# --- as texts -----------------------------------------------------------------------------------------------------


def dialog_text(history: Sequence[tuple[str, str]], question: str) -> str:
    """All rounds before, and the question, up to its answer: "q: ... a: ... q: ... a:", as LAVIS joins a dialog."""
    return " ".join([*(f"q: {asked} a: {said}" for asked, said in history), f"q: {question} a:"])


def dialog_ids(
    spell: Callable[[str], Sequence[int]], history: Sequence[tuple[str, str]], question: str,
    answers: Sequence[str], *, first: int, last: int, most: int,
) -> list[list[int]]:  # fmt: skip
    """A row of ids for each answer to a question: ``first``, the dialog with that answer, ``last``.

    ``spell`` gives a text's ids. A dialog that is too long for ``most`` loses its beginning, equally for all answers;
    an answer that is too long by itself its end.
    """
    said = [list(spell(answer))[: most - 2] for answer in answers]
    before = list(spell(dialog_text(history, question)))
    room = most - 2 - max(map(len, said), default=0)
    before = before[-room:] if room > 0 else []
    return [[first, *before, *answer, last] for answer in said]
