"""Questions: answers ranked from a list or generated, and VQA accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openblip.blip import Blip
from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files
from openblip.evaluation.metrics import answers
from openblip.evaluation.protocols.base import AnswerPreset, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted


def predictor(blip: Blip, preset: AnswerPreset, data: Path) -> Predict:
    listed = _answer_list(data / preset.answer_list) if preset.inference == "rank" else None
    if listed is not None:
        options: dict[str, Any] = {"answers": listed, "k": min(preset.k, len(listed)), "smoothing": preset.smoothing}
    else:
        lengths = {"min_new_tokens": preset.min_length - 1, "max_new_tokens": preset.max_length - 1}
        options = {"beams": preset.beams, **lengths}

    def predict(items: Items) -> Iterator[Any]:
        step = 4 * blip.batch_size
        for at in range(0, len(items), step):
            part = items[at : at + step]
            questions = [_bare(item.question) if preset.bare else item.question for item in part]
            found = blip.ask([item.image for item in part], questions, **options)
            yield from (one if isinstance(one, OpenBlipError) else one.text for one in found)

    return predict


def _answer_list(path: Path) -> list[str]:
    listed = files.load(path)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise EvaluationError(f"{path} is not a list of answers")
    return listed


def _bare(question: str) -> str:
    return re.sub(r"[^\w\s]", "", question)


def scored(items: Items, predicted: Predicted, preset: AnswerPreset) -> Evaluated:
    done = predicted.of(items, "answered")
    metrics: dict[str, float | None] = {}
    each: dict[Any, float] = {}
    if preset.rule:
        people = {item.id: answers.Reference(item.answers, *item.kinds) for item in done}
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
        )
        for item in items
    ]
    return predicted.evaluated(metrics, shown)
