"""Grounding metrics: how well predicted boxes cover the reference boxes.

A box is (left, top, right, bottom), in pixels or in any other unit that both sides share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from sys import float_info
from typing import Generic

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.ids import Id, check_ids

BoxEdges = Sequence[float]  # left, top, right, bottom


@dataclass(frozen=True)
class BoxScores(Generic[Id]):
    """Scores of boxes.

    Attributes:
        accuracy: The share of boxes whose IoU reaches the threshold.
        mean_iou: The mean IoU.
        items: The IoU of each box, by id.
    """

    accuracy: float
    mean_iou: float
    items: dict[Id, float]


def score(
    predictions: Mapping[Id, BoxEdges], references: Mapping[Id, BoxEdges], threshold: float = 0.5
) -> BoxScores[Id]:
    """Score one box per expression.

    As mmpretrain's `VisualGroundingMetric`: areas are plain (without "+1"), and an IoU equal to the threshold counts.

    Args:
        predictions: The predicted box of each expression. A box without area scores 0.
        references: The reference box of each expression.
        threshold: The IoU from which a box counts as right.

    Returns:
        The accuracy, the mean IoU, and the IoU of each box.

    Raises:
        EvaluationError: If ids differ, if a box is reversed or is not four finite numbers, or if a reference box has no
            area.
    """
    check_ids(predictions, references)
    items = {}
    for key, reference in references.items():
        box = _check_box(key, predictions[key], "box")
        target = _check_box(key, reference, "reference box")
        if not _area(target):
            raise EvaluationError(f"the reference box of id {key!r} has no area: {reference!r}")
        items[key] = iou(box, target)
    hits = sum(value >= threshold for value in items.values())
    return BoxScores(hits / len(items), fsum(items.values()) / len(items), items)


def iou(a: BoxEdges, b: BoxEdges) -> float:
    """Return the intersection over union of two boxes.

    Args:
        a: A box: left, top, right, bottom.
        b: Another box.

    Returns:
        The area of the intersection, divided by the area of the union; 0 if both boxes have no area.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = _area(a) + _area(b) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: BoxEdges) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _is_finite_number(edge: object) -> bool:
    # math.isfinite fails on an integer that is too large for a float.
    return isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) <= float_info.max


def _check_box(key: object, box: BoxEdges, name: str) -> list[float]:
    """Return the edges as floats, or raise an error that calls the box `name`."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_finite_number, box)):
        raise EvaluationError(f"the {name} of id {key!r} must be four numbers, got {box!r}")
    x_min, y_min, x_max, y_max = edges = [float(edge) for edge in box]
    if x_max < x_min or y_max < y_min:
        raise EvaluationError(f"the {name} of id {key!r} must be left, top, right, bottom, got {box!r}")
    return edges
