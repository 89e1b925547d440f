"""Expressions: the box that each names, in pixels of its picture, and how well boxes cover the right ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from openblip.blip import Blip
from openblip.evaluation.metrics import boxes
from openblip.evaluation.protocols.base import GroundPreset, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.inputs import chunks
from openblip.preprocess.text import clean_expression
from openblip.runner import BOX_ROWS, Measured, Runner


def predictor(blip: Blip) -> Predict:
    """As :meth:`Blip.ground`, but an expression that cleaning leaves no words of has a box too: it counts."""
    part = blip._part("grounding")

    def prepare(given: tuple[Measured, str]) -> tuple[tuple[int, int], list[int]]:
        return given[0].told(), expression_ids(part, given[1])  # the picture was opened just before

    def find(states: Tensor, asked: list[tuple[tuple[int, int], list[int]]]) -> list[str]:
        found = []
        for run in chunks(range(len(asked)), BOX_ROWS):
            sizes, rows = zip(*(asked[i] for i in run), strict=True)
            found += part.boxes(list(rows), states[run], sizes)
        return [json.dumps([round(edge, 4) for edge in (box.left, box.top, box.right, box.bottom)]) for box in found]

    def predict(items: Items) -> Iterator[Any]:
        measured = ((image := Measured(item.image), (image, item.texts[0])) for item in items)
        return blip._run(part, measured, prepare, find)

    return predict


def expression_ids(runner: Runner, text: str) -> list[int]:
    """An expression as mmpretrain's evaluation cleans it, [CLS] to [SEP]."""
    ids: list[int] = runner.tokenizer.encode([clean_expression(text)], "cls").ids[0].tolist()
    return runner.fitting(ids)


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
