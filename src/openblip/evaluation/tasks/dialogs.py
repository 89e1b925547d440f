"""Visual dialog: the answers offered in a round, ranked by ITM of picture and caption with the whole dialog."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from openblip.blip import Blip
from openblip.data.visdial import dialog_ids
from openblip.engine.protocols import Dialogs
from openblip.errors import OpenBlipError
from openblip.evaluation.metrics import dialogs
from openblip.evaluation.protocols.base import Items
from openblip.evaluation.protocols.visdial import DialogItem, DialogPreset
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.pipelines.base import Pipeline, Prepared, TaskModel
from openblip.pipelines.inputs import ImageInput
from openblip.pipelines.retrieval import RetrievalPipeline


def predictor(blip: Blip, preset: DialogPreset) -> Predict:
    """Ranks as JSON, from 1, of a round's answers; a picture is seen once for all its rounds."""
    pipeline = DialogPipeline(blip.pipeline("retrieval").model, preset.max_tokens)

    def predict(items: Items) -> Iterator[Any]:
        same = [cast("list[DialogItem]", list(group)) for _, group in groupby(items, key=lambda item: item.image)]
        found = pipeline.run((rounds[0].image, rounds) for rounds in same)
        for rounds, ranked in zip(same, found, strict=True):
            yield from [ranked] * len(rounds) if isinstance(ranked, OpenBlipError) else ranked

    return predict


@dataclass(frozen=True)
class DialogIds:
    """The token ids of an image's caption, and of the answers of each of its rounds."""

    caption: list[int]
    rounds: list[list[list[int]]]


class DialogPipeline(Pipeline[tuple[ImageInput, Sequence[DialogItem]], DialogIds, "list[list[str]]", "list[str]"]):
    """Ranks the answers of dialog rounds by the match of image, caption and dialog."""

    def __init__(self, model: TaskModel, max_tokens: int) -> None:
        super().__init__(model)
        self.retrieval = RetrievalPipeline(model)
        self.max_tokens = min(max_tokens, model.config.text.max_positions)

    def preprocess(self, item: tuple[ImageInput, Sequence[DialogItem]]) -> Prepared[DialogIds]:
        """Return the opened image and the token ids of its dialog."""
        image, rounds = item
        tokenizer = self.model.tokenizer
        rows = [
            dialog_ids(
                tokenizer.spell, one.history, one.question, one.answers,
                first=tokenizer.enc_id, last=tokenizer.sep_id, most=self.max_tokens,
            )
            for one in rounds
        ]  # fmt: skip
        caption = self.model.token_ids(rounds[0].texts[0], "cls", self.max_tokens)
        return Prepared(self.model.open_image(image, videos=False), DialogIds(caption, rows))

    def forward(self, batch: list[Prepared[DialogIds]]) -> list[list[str]]:
        """Return the ranks of each round, as JSON."""
        results = []
        engine = self.model.engine.require(Dialogs)
        states = self.model.encode_images([prepared.image for prepared in batch])
        for state, prepared in zip(states, batch, strict=True):
            memory = engine.project_captioned_images(state[None], *self.model.pad([prepared.text.caption]))
            logits = [self.retrieval.match_logits(rows, memory) for rows in prepared.text.rounds]
            results.append([json.dumps(ranks(scores.tolist())) for scores in logits])
        return results

    def postprocess(self, raw: list[list[str]], batch: list[Prepared[DialogIds]]) -> list[list[str]]:
        """Return the ranks of each round."""
        return raw


def ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each, from 1 for the highest; of equal ones that which comes first is ranked first."""
    found = [0] * len(scores)
    for rank, place in enumerate(sorted(range(len(scores)), key=lambda place: -scores[place]), 1):
        found[place] = rank
    return found


def scored(items: Items, predicted: Predicted) -> Evaluated:
    rounds = cast("list[DialogItem]", items)
    done = cast("list[DialogItem]", predicted.of(items, "ranked"))
    given = {one.id: json.loads(predicted.texts[one.id]) for one in done}
    found = dialogs.score(given, {one.id: dialogs.Reference(one.right, one.relevant) for one in done})
    metrics: dict[str, float | None] = {"mrr": found.mrr, **{f"r{k}": value for k, value in found.recall.items()}}
    metrics |= {"mean_rank": found.mean_rank, "ndcg": found.ndcg}
    shown = [
        Shown(
            one.id,
            one.image,
            [
                ("question", one.question),
                ("first", one.answers[given[one.id].index(1)] if one.id in given else predicted.text(one.id)),
                ("right", one.answers[one.right]),
            ],
            1 / found.items[one.id] if one.id in found.items else None,
        )
        for one in rounds
    ]
    return predicted.evaluated(metrics, shown)
