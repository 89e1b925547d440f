"""Statements about two images (NLVR2): accuracy and consistency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation.evaluators.base import Evaluator, TaskScores
from openblip.evaluation.metrics.bootstrap import mean_intervals
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import Item, Items, NlvrPreset
from openblip.evaluation.report import ReportItem
from openblip.pipelines.base import TaskModel
from openblip.pipelines.nlvr import NlvrPipeline
from openblip.preprocess.text import clean_caption


class PresetNlvrPipeline(NlvrPipeline):
    """Compares two images with a statement that is cleaned and starts as in a preset.

    Args:
        model: The model of the NLVR task.
        preset: The preset.
    """

    def __init__(self, model: TaskModel, preset: NlvrPreset) -> None:
        super().__init__(model)
        self.preset = preset

    def tokenize(self, statement: str) -> list[int]:
        """Return the token ids of a statement."""
        text = clean_caption(statement, self.preset.max_words) if self.preset.clean else statement
        return self.model.check_length(self.model.token_ids(text, self.preset.first_token))


class NlvrEvaluator(Evaluator[bool]):
    """Evaluates statements about two images. A prediction is whether the statement is true."""

    action = "compared"
    preset: NlvrPreset

    def predict(self, items: Items) -> Iterator[bool | OpenBlipError]:
        """Yield whether each statement is true."""
        pipeline = PresetNlvrPipeline(self.blip.pipeline("nlvr").model, self.preset)
        for result in pipeline.run((item.image, item.second_image, [item.texts[0]]) for item in items):
            yield result if isinstance(result, OpenBlipError) else result[0].label

    def parse(self, value: object) -> bool:
        """Return a label from its JSON value."""
        if not isinstance(value, bool):
            raise EvaluationError(f"must be true or false, got {value!r}")
        return value

    def score(self, items: Items, predictions: Mapping[ItemId, bool]) -> TaskScores:
        """Compute accuracy and consistency."""
        right = {str(item.id): str(predictions[item.id]) == item.answers[0] for item in items}
        metrics: dict[str, float | None] = {
            "accuracy": sum(right.values()) / len(right),
            "consistency": compute_consistency(right),
        }
        scores = {item.id: float(right[str(item.id)]) for item in items}
        return TaskScores(metrics, scores, intervals=mean_intervals({"accuracy": scores.values()}))

    def show(self, item: Item, prediction: bool | None, error: str, score: float | None) -> ReportItem:
        """Return the prediction next to the label, with both images."""
        label = error if prediction is None else str(prediction)
        lines = [("statement", item.texts[0]), ("prediction", label), ("label", item.answers[0])]
        return ReportItem(item.id, item.image, lines, score, item.second_image)


def compute_consistency(right: Mapping[str, bool]) -> float:
    """Return the share of sentences that are right for all their pairs of images (Suhr et al. 2019).

    Args:
        right: Whether each statement was classified correctly, by NLVR2's identifier: split, set, pair and sentence.

    Returns:
        The consistency, from 0 to 1.
    """
    by_sentence: dict[tuple[str, str, str], bool] = {}
    for key, is_right in right.items():
        split, number, _, sentence = key.split("-")
        name = (split, number, sentence)
        by_sentence[name] = by_sentence.get(name, True) and is_right
    return sum(by_sentence.values()) / len(by_sentence)
