"""Statements about two pictures (NLVR2): judged true or false, accuracy and consistency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from openblip.blip import Blip
from openblip.evaluation.protocols import nlvr2
from openblip.evaluation.protocols.base import ComparePreset, Item, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.preprocess.text import clean_caption


def predictor(blip: Blip, preset: ComparePreset) -> Predict:
    """As :meth:`Blip.compare`, with the text cleaned and begun as the preset has it."""
    part = blip._part("nlvr")

    def prepare(item: Item) -> tuple[Any, list[int]]:
        text = clean_caption(item.texts[0], preset.max_words) if preset.clean else item.texts[0]
        return part.open(item.second), part.fitting(part.tokenizer.encode([text], preset.first_token).ids[0].tolist())

    def judge(states: Tensor, asked: list[tuple[Any, list[int]]]) -> list[str]:
        others = part.states([other for other, _ in asked])
        found = part.comparisons([row for _, row in asked], states, others)
        return [str(one.label) for one in found]

    def predict(items: Items) -> Iterator[Any]:
        return blip._run(part, ((item.image, item) for item in items), prepare, judge)

    return predict


def scored(items: Items, predicted: Predicted) -> Evaluated:
    done = predicted.of(items, "judged")
    right = {item.id: predicted.texts[item.id] == item.answers[0] for item in done}
    metrics = {"accuracy": sum(right.values()) / len(right), "consistency": nlvr2.consistency(right)}
    shown = [
        Shown(
            item.id,
            item.image,
            [("statement", item.texts[0]), ("judged", predicted.text(item.id)), ("is", item.answers[0])],
            float(right[item.id]) if item.id in right else None,
            item.second,
        )
        for item in items
    ]
    return predicted.evaluated(metrics, shown)
