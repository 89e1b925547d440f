"""Grounding: how well a predicted box covers the right one. Boxes are (left, top, right, bottom)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.ids import check_ids

BoxEdges = Sequence[float]


@dataclass(frozen=True)
class BoxScores:
    """Share of boxes with an IoU of ``threshold`` or more, the mean IoU, and the IoU of each."""

    accuracy: float
    mean_iou: float
    items: dict[Any, float]


def score(predictions: Mapping[Any, BoxEdges], references: Mapping[Any, BoxEdges], threshold: float = 0.5) -> BoxScores:
    """Judge one box per expression. Raises :class:`EvaluationError` for a missing or unknown id, or a box that is none.

    As mmpretrain's ``VisualGroundingMetric``: plain areas without "+1", the threshold itself is a hit.
    """
    check_ids(predictions, references)
    items = {key: iou(_box(key, predictions[key]), _box(key, box)) for key, box in references.items()}
    hits = sum(value >= threshold for value in items.values())
    return BoxScores(hits / len(items), fsum(items.values()) / len(items), items)


def iou(a: BoxEdges, b: BoxEdges) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    whole = _area(a) + _area(b) - common
    return common / whole if whole > 0 else 0.0


def _area(box: BoxEdges) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _box(key: object, box: BoxEdges) -> list[float]:
    numbers = isinstance(box, Sequence) and all(isinstance(edge, int | float) and edge == edge for edge in box)
    if not numbers or len(box) != 4:
        raise EvaluationError(f"the box of id {key!r} is not four numbers: {box!r}")
    return list(map(float, box))
