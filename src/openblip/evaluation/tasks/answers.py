"""Questions: answers ranked from a list or generated, and VQA accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openblip.blip import Blip
from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files
from openblip.evaluation.metrics import answers
from openblip.evaluation.protocols.base import AnswerPreset, Item, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.preprocess.text import clean_expression, clean_question


def predictor(blip: Blip, preset: AnswerPreset, data: Path) -> Predict:
    how = options(preset, data)

    def predict(items: Items) -> Iterator[Any]:
        step = 4 * blip.batch_size
        for at in range(0, len(items), step):
            part = items[at : at + step]
            found = blip.ask(
                [item.image for item in part], [worded(item, preset) for item in part], on_error="return", **how
            )
            yield from (one if isinstance(one, OpenBlipError) else one.text for one in found)

    return predict


def options(preset: AnswerPreset, data: Path) -> dict[str, Any]:
    """What :meth:`Blip.ask` is told."""
    if preset.inference == "rank":
        listed = _answer_list(data / preset.answer_list)
        return {"answers": listed, "shortlist": min(preset.k, len(listed)), "smoothing": preset.smoothing}
    lengths = {"min_new_tokens": preset.min_length - 1, "max_new_tokens": preset.max_length - 1}
    return {"num_beams": preset.num_beams, **lengths}


def worded(item: Item, preset: AnswerPreset) -> str:
    """The question as the preset asks it."""
    return clean_expression(item.question) if preset.bare else clean_question(item.question, preset.max_words)


def right(item: Item, preset: AnswerPreset) -> answers.Reference:
    """What people answered, as the preset compares it."""
    said = [clean_expression(answer) for answer in item.answers] if preset.bare_answers else item.answers
    return answers.Reference(said, *item.kinds)


def _answer_list(path: Path) -> list[str]:
    listed = files.load(path)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise EvaluationError(f"{path} is not a list of answers")
    return listed


def scored(items: Items, predicted: Predicted, preset: AnswerPreset) -> Evaluated:
    done = predicted.of(items, "answered")
    metrics: dict[str, float | None] = {}
    each: dict[Any, float] = {}
    if preset.rule:
        people = {item.id: right(item, preset) for item in done}
        found = answers.score({key: predicted.texts[key] for key in people}, people, preset.rule)
        each = found.items
        metrics = {"accuracy": found.accuracy, **found.by_answer_type}
    shown = [
        Shown(
            item.id,
            item.image,
            [
                ("question", item.question),
                ("answer", predicted.text(item.id)),
                ("people", ", ".join(item.answers)),
            ],
            each.get(item.id),
            measure="accuracy",
            by_server=not preset.rule and item.id in predicted.texts,
        )
        for item in items
    ]
    return predicted.evaluated(metrics, shown)
