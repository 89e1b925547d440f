"""Statements about two pictures (NLVR2): judged true or false, accuracy and consistency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openblip.blip import Blip
from openblip.errors import OpenBlipError
from openblip.evaluation.protocols import nlvr2
from openblip.evaluation.protocols.base import ComparePreset, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.pipelines.nlvr import NlvrPipeline
from openblip.preprocess.text import clean_caption


def predictor(blip: Blip, preset: ComparePreset) -> Predict:
    """As :meth:`Blip.compare`, with the text cleaned and begun as the preset has it."""
    model = blip.pipeline("nlvr").model

    class PresetPipeline(NlvrPipeline):
        def tokenize(self, statement: str) -> list[int]:
            text = clean_caption(statement, preset.max_words) if preset.clean else statement
            return self.model.check_length(self.model.token_ids(text, preset.first_token))

    def predict(items: Items) -> Iterator[Any]:
        pairs = ((item.image, item.second, item.texts[:1]) for item in items)
        for result in PresetPipeline(model).run(pairs):
            yield result if isinstance(result, OpenBlipError) else str(result[0].label)

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
