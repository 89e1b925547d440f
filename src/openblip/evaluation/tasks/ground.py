"""Expressions: the box that each names, in pixels of its picture, and how well boxes cover the right ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from openblip.blip import Blip
from openblip.errors import OpenBlipError
from openblip.evaluation.metrics import boxes
from openblip.evaluation.protocols.base import GroundPreset, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.pipelines.grounding import GroundingPipeline
from openblip.preprocess.text import clean_expression


def predictor(blip: Blip) -> Predict:
    """As :meth:`Blip.ground`, but an expression that cleaning leaves no words of has a box too: it counts."""
    model = blip.pipeline("grounding").model

    def predict(items: Items) -> Iterator[Any]:
        for found in BenchmarkGroundingPipeline(model).run((item.image, item.texts[:1]) for item in items):
            yield found if isinstance(found, OpenBlipError) else json.dumps([round(edge, 4) for edge in found[0].edges])

    return predict


class BenchmarkGroundingPipeline(GroundingPipeline):
    """Grounding with expressions cleaned as in mmpretrain's evaluation: not cut, and possibly without words."""

    def tokenize(self, expression: str) -> list[int]:
        """Return the token ids of an expression, from [CLS] to [SEP]."""
        return self.model.check_length(self.model.token_ids(clean_expression(expression), "cls"))


def scored(items: Items, predicted: Predicted, preset: GroundPreset) -> Evaluated:
    done = predicted.of(items, "found")
    boxed = {item.id: json.loads(predicted.texts[item.id]) for item in done}
    found = boxes.score(boxed, {item.id: item.box for item in done}, preset.threshold)
    given = {
        item.id: {**({"predicted": boxed[item.id]} if item.id in boxed else {}), "reference": item.box}
        for item in items
    }
    shown = [
        Shown(
            item.id,
            item.image,
            [("expression", item.texts[0]), *((name, _told(box)) for name, box in given[item.id].items())]
            + ([("error", predicted.failed[item.id])] if item.id in predicted.failed else []),
            found.items.get(item.id),
            measure="IoU",
            boxes=given[item.id],
        )
        for item in items
    ]
    return predicted.evaluated({"accuracy": found.accuracy, "mean_IoU": found.mean_iou}, shown)


def _told(box: Sequence[float]) -> str:
    return ", ".join(f"{edge:.0f}" for edge in box)
