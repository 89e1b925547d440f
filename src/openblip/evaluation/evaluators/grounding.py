"""Expressions: the box that each refers to, in pixels of its image, and how well it covers the reference box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation.evaluators.base import Evaluator, TaskScores
from openblip.evaluation.metrics import boxes
from openblip.evaluation.metrics.bootstrap import mean_intervals
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import GroundingPreset, Item, Items
from openblip.evaluation.report import ReportItem
from openblip.pipelines.grounding import GroundingPipeline
from openblip.preprocess.text import clean_expression

Edges = tuple[float, ...]  # left, top, right and bottom in pixels, to 4 digits


class PublishedGroundingPipeline(GroundingPipeline):
    """Finds boxes as mmpretrain's evaluation does: an expression without words after cleaning has a box too."""

    def tokenize(self, expression: str) -> list[int]:
        """Return the token ids of an expression."""
        return self.model.check_length(self.model.token_ids(clean_expression(expression), "cls"))


class GroundingEvaluator(Evaluator[Edges]):
    """Evaluates boxes. A prediction is left, top, right and bottom in pixels."""

    action = "grounded"
    preset: GroundingPreset

    def predict(self, items: Items) -> Iterator[Edges | OpenBlipError]:
        """Yield the box of each expression."""
        pipeline = PublishedGroundingPipeline(self.blip.pipeline("grounding").model)
        for result in pipeline.run((item.image, [item.texts[0]]) for item in items):
            if isinstance(result, OpenBlipError):
                yield result
            else:
                yield tuple(round(edge, 4) for edge in result[0].edges)

    def parse(self, value: object) -> Edges:
        """Return a box from its JSON value."""
        if not isinstance(value, list) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
            raise EvaluationError(f"must be four numbers, got {value!r}")
        return tuple(value)

    def score(self, items: Items, predictions: Mapping[ItemId, Edges]) -> TaskScores:
        """Compute the share of right boxes and the mean IoU."""
        references = {item.id: item.box for item in items}
        scores = boxes.score({key: predictions[key] for key in references}, references, self.preset.threshold)
        hits = [float(value >= self.preset.threshold) for value in scores.items.values()]
        intervals = mean_intervals({"accuracy": hits, "mean_IoU": scores.items.values()})
        metrics: dict[str, float | None] = {"accuracy": scores.accuracy, "mean_IoU": scores.mean_iou}
        return TaskScores(metrics, scores.items, intervals=intervals)

    def show(self, item: Item, prediction: Edges | None, error: str, score: float | None) -> ReportItem:
        """Return both boxes, drawn in the image."""
        item_boxes = {} if prediction is None else {"predicted": prediction}
        item_boxes["reference"] = item.box
        lines = [("expression", item.texts[0])]
        lines += [(name, ", ".join(f"{edge:.0f}" for edge in box)) for name, box in item_boxes.items()]
        if error:
            lines.append(("error", error))
        return ReportItem(item.id, item.image, lines, score, metric="IoU", boxes=item_boxes)
