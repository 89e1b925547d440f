"""Grounding: how well a predicted box covers the right one. Boxes are (left, top, right, bottom)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from sys import float_info
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

    A predicted box without any area scores 0; one that is reversed, and a reference without area, is an error. As
    mmpretrain's ``VisualGroundingMetric``: plain areas without "+1", the threshold itself is a hit.
    """
    check_ids(predictions, references)
    items = {key: iou(_box(key, predictions[key], "box"), _reference(key, box)) for key, box in references.items()}
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


def _finite(edge: float) -> bool:
    return not isinstance(edge, bool) and abs(edge) <= float_info.max  # math.isfinite fails on a huge integer


def _reference(key: object, box: BoxEdges) -> list[float]:
    edges = _box(key, box, "reference box")
    if not _area(edges):
        raise EvaluationError(f"the reference box of id {key!r} has no area: {box!r}")
    return edges


def _box(key: object, box: BoxEdges, name: str) -> list[float]:
    """The edges as numbers. Raises :class:`EvaluationError`, which calls the box ``name``, where they are none."""
    listed = isinstance(box, Sequence) and len(box) == 4
    if not listed or not all(isinstance(edge, int | float) and _finite(edge) for edge in box):
        raise EvaluationError(f"the {name} of id {key!r} is not four numbers: {box!r}")
    left, top, right, bottom = edges = list(map(float, box))
    if right < left or bottom < top:
        raise EvaluationError(f"the {name} of id {key!r} is reversed: {box!r} is not left, top, right, bottom")
    return edges
