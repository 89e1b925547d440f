"""Visual dialog: the candidates of a round, ranked by ITM of image, caption and the complete dialog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch

from openblip.data.visdial import dialog_ids
from openblip.engine.protocols import Dialogs
from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation.evaluators.base import Evaluator, TaskScores
from openblip.evaluation.metrics import dialogs
from openblip.evaluation.metrics.bootstrap import mean_intervals
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import DialogItem, Item, Items, VisdialPreset
from openblip.evaluation.report import ReportItem
from openblip.pipelines.base import Pipeline, Prepared, TaskModel
from openblip.pipelines.inputs import ImageInput
from openblip.pipelines.retrieval import RetrievalPipeline

Ranks = tuple[int, ...]  # the rank of each candidate, from 1


@dataclass(frozen=True)
class DialogTokens:
    """The token ids of a dialog: of its caption, and for each round of the dialog with each candidate."""

    caption: list[int]
    rounds: list[list[list[int]]]


class VisdialPipeline(Pipeline[tuple[ImageInput, Sequence[DialogItem]], DialogTokens, list[list[Ranks]], list[Ranks]]):
    """Ranks the candidates of dialog rounds. Items are an image and its rounds; a result is a list of ranks.

    An image is encoded once for all its rounds.

    Args:
        model: The model of the retrieval task.
        max_tokens: The most tokens of a dialog.
    """

    def __init__(self, model: TaskModel, max_tokens: int) -> None:
        super().__init__(model)
        self.retrieval = RetrievalPipeline(model)
        self.max_tokens = min(max_tokens, model.config.text.max_positions)

    def preprocess(self, item: tuple[ImageInput, Sequence[DialogItem]]) -> Prepared[DialogTokens]:
        """Return the opened image and the token ids of the dialog."""
        image, rounds = item
        tokenizer = self.model.tokenizer
        ends = {"first_id": tokenizer.enc_id, "last_id": tokenizer.sep_id}
        rows = [
            dialog_ids(tokenizer.spell, turn.history, turn.question, turn.answers, **ends, max_tokens=self.max_tokens)
            for turn in rounds
        ]
        caption = self.model.token_ids(rounds[0].texts[0], "cls", self.max_tokens)
        return Prepared(self.model.open_image(image, videos=False), DialogTokens(caption, rows))

    @torch.inference_mode()
    def forward(self, batch: list[Prepared[DialogTokens]]) -> list[list[Ranks]]:
        """Return the ranks of each image's rounds."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        engine = self.model.engine.require(Dialogs)
        ranks = []
        for image_states, prepared in zip(states, batch, strict=True):
            caption = self.model.pad([prepared.text.caption])
            memory = engine.project_captioned_images(image_states[None], *caption)
            scores = [self.retrieval.match_logits(rows, memory) for rows in prepared.text.rounds]
            ranks.append([rank_scores(values.tolist()) for values in scores])
        return ranks

    def postprocess(self, raw: list[list[Ranks]], batch: list[Prepared[DialogTokens]]) -> list[list[Ranks]]:
        """Return the ranks of each image's rounds."""
        return raw


class VisdialEvaluator(Evaluator[Ranks]):
    """Evaluates dialog rounds. A prediction is the rank of each candidate, from 1."""

    action = "ranked"
    preset: VisdialPreset

    def predict(self, items: Items) -> Iterator[Ranks | OpenBlipError]:
        """Yield the ranks of the candidates of each round."""
        pipeline = VisdialPipeline(self.blip.pipeline("retrieval").model, self.preset.max_tokens)
        rounds = cast("list[DialogItem]", items)
        groups = [list(group) for _, group in groupby(rounds, key=lambda item: item.image)]
        results = pipeline.run((group[0].image, group) for group in groups)
        for group, result in zip(groups, results, strict=True):
            yield from [result] * len(group) if isinstance(result, OpenBlipError) else result

    def parse(self, value: object) -> Ranks:
        """Return ranks from their JSON value."""
        if not isinstance(value, list) or not all(type(rank) is int for rank in value):
            raise EvaluationError(f"must be a list of ranks, got {value!r}")
        return tuple(value)

    def score(self, items: Items, predictions: Mapping[ItemId, Ranks]) -> TaskScores:
        """Compute the metrics of visual dialog."""
        references = {}
        for item in cast("list[DialogItem]", items):
            references[item.id] = dialogs.DialogReference(item.answer_index, item.relevance)
        scores = dialogs.score({key: predictions[key] for key in references}, references)
        metrics: dict[str, float | None] = {"mrr": scores.mrr}
        metrics |= {f"r{k}": value for k, value in scores.recall.items()}
        metrics |= {"mean_rank": scores.mean_rank, "ndcg": scores.ndcg}
        reciprocal_ranks = {key: 1 / rank for key, rank in scores.items.items()}
        ranks = list(scores.items.values())
        samples = {"mrr": list(reciprocal_ranks.values()), "mean_rank": [float(rank) for rank in ranks]}
        samples |= {f"r{k}": [float(rank <= k) for rank in ranks] for k in scores.recall}
        return TaskScores(metrics, reciprocal_ranks, intervals=mean_intervals(samples))

    def show(self, item: Item, prediction: Ranks | None, error: str, score: float | None) -> ReportItem:
        """Return the candidate that is ranked first next to the right answer."""
        round_item = cast(DialogItem, item)
        best = error if prediction is None else item.answers[prediction.index(1)]
        lines = [
            ("question", item.question),
            ("ranked first", best),
            ("right answer", item.answers[round_item.answer_index]),
        ]
        return ReportItem(item.id, item.image, lines, score)


def rank_scores(scores: Sequence[float]) -> Ranks:
    """Return the rank of each score, from 1 for the highest; of equal scores, the first one is ranked first."""
    ranks = [0] * len(scores)
    for rank, index in enumerate(sorted(range(len(scores)), key=lambda index: -scores[index]), 1):
        ranks[index] = rank
    return tuple(ranks)
