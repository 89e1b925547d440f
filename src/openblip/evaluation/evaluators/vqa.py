"""Questions about images and videos: answers ranked from a list or generated, and VQA accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files
from openblip.evaluation.evaluators.base import Evaluator, TaskScores, make_input, parse_text
from openblip.evaluation.metrics import answers
from openblip.evaluation.metrics.bootstrap import mean_intervals
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import Item, Items, VqaPreset
from openblip.evaluation.report import ReportItem
from openblip.pipelines.vqa import VqaPipeline
from openblip.preprocess.text import clean_expression, clean_question


class VqaOptions(TypedDict, total=False):
    """Options of [`VqaPipeline`][openblip.pipelines.vqa.VqaPipeline]."""

    answers: list[str]
    shortlist: int
    smoothing: float
    num_beams: int
    min_new_tokens: int
    max_new_tokens: int


class VqaEvaluator(Evaluator[str]):
    """Evaluates answers. A prediction is the answer."""

    action = "answered"
    preset: VqaPreset

    def predict(self, items: Items) -> Iterator[str | OpenBlipError]:
        """Yield the answer to each question."""
        pipeline = VqaPipeline(self.blip.pipeline("vqa").model, **choose_options(self.preset, self.folder))
        groups = [[item] for item in items]
        if self.preset.num_frames is not None:  # a video is encoded once for consecutive questions about it
            groups = [list(group) for _, group in groupby(items, key=lambda item: item.image)]
        inputs = (
            (make_input(group[0], self.preset.num_frames), [clean(item, self.preset) for item in group])
            for group in groups
        )
        results = pipeline.run(inputs)
        for group, result in zip(groups, results, strict=True):
            if isinstance(result, OpenBlipError):
                yield from [result] * len(group)
            else:
                yield from (answer.text for answer in result)

    def parse(self, value: object) -> str:
        """Return an answer from its JSON value."""
        return parse_text(value)

    def score(self, items: Items, predictions: Mapping[ItemId, str]) -> TaskScores:
        """Compute VQA accuracy by the preset's rule; no metrics if only a server can score."""
        if not self.preset.rule:
            return TaskScores({})
        references = {item.id: build_reference(item, self.preset) for item in items}
        scores = answers.score({key: predictions[key] for key in references}, references, self.preset.rule)
        intervals = mean_intervals({"accuracy": scores.items.values()})
        return TaskScores({"accuracy": scores.accuracy, **scores.by_answer_type}, scores.items, intervals=intervals)

    def show(self, item: Item, prediction: str | None, error: str, score: float | None) -> ReportItem:
        """Return the answer next to people's answers."""
        answer = error if prediction is None else prediction
        lines = [("question", item.question), ("answer", answer), ("people", ", ".join(item.answers))]
        by_server = not self.preset.rule and prediction is not None
        return ReportItem(item.id, item.image, lines, score, metric="accuracy", by_server=by_server)


def choose_options(preset: VqaPreset, folder: Path) -> VqaOptions:
    """Return the options of the pipeline for a preset.

    Args:
        preset: The preset.
        folder: The folder of the answer list.

    Returns:
        The options of ranking or of generation.

    Raises:
        EvaluationError: If the answer list is not a list of texts.
    """
    if preset.inference == "rank":
        path = folder / preset.answer_list
        candidates = files.read_json(path)
        if not isinstance(candidates, list) or not candidates or not all(isinstance(c, str) for c in candidates):
            raise EvaluationError(f"{path} must be a list of answers")
        return {
            "answers": candidates,
            "shortlist": min(preset.shortlist, len(candidates)),
            "smoothing": preset.smoothing,
        }
    return {
        "num_beams": preset.num_beams,
        "min_new_tokens": preset.min_length - 1,
        "max_new_tokens": preset.max_length - 1,
    }


def clean(item: Item, preset: VqaPreset) -> str:
    """Return the question of an item, cleaned as the preset does."""
    if preset.strip_punctuation:
        return clean_expression(item.question)
    return clean_question(item.question, preset.max_words)


def build_reference(item: Item, preset: VqaPreset) -> answers.AnswerReference:
    """Return people's answers, cleaned as the preset does."""
    texts = [clean_expression(text) for text in item.answers] if preset.strip_answer_punctuation else item.answers
    return answers.AnswerReference(texts, item.question_type, item.answer_type)
