"""Visual dialog: the answers offered in a round, ranked by ITM of picture and caption with the whole dialog."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from openblip.blip import Blip
from openblip.data.visdial import dialog_ids
from openblip.engine.protocols import Dialogs, MatchLogits
from openblip.errors import OpenBlipError
from openblip.evaluation.metrics import dialogs
from openblip.evaluation.protocols.base import Items
from openblip.evaluation.protocols.visdial import DialogItem, DialogPreset
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted
from openblip.model.text import Memory
from openblip.runner import TEXT_ROWS, Runner, by_length


def predictor(blip: Blip, preset: DialogPreset) -> Predict:
    """Ranks as JSON, from 1, of a round's answers; a picture is seen once for all its rounds."""
    part = blip._part("retrieval")
    tokenizer = part.tokenizer
    most = min(preset.max_tokens, part.config.text.max_positions)

    def prepare(rounds: Sequence[DialogItem]) -> tuple[list[int], list[list[list[int]]]]:
        rows = [
            dialog_ids(
                tokenizer.spell, one.history, one.question, one.answers,
                first=tokenizer.enc_id, last=tokenizer.sep_id, most=most,
            )
            for one in rounds
        ]  # fmt: skip
        caption = tokenizer.encode([rounds[0].texts[0]], "cls", max_length=most).ids[0].tolist()
        return caption, rows

    def rank(states: Tensor, asked: list[tuple[list[int], list[list[list[int]]]]]) -> list[list[str]]:
        found = []
        for state, (caption, rounds) in zip(states, asked, strict=True):
            memory = part.engine.require(Dialogs).project_captioned_images(state[None], *part.pad([caption]))
            found.append([json.dumps(ranks(logits(part, rows, memory).tolist())) for rows in rounds])
        return found

    def predict(items: Items) -> Iterator[Any]:
        same = [cast("list[DialogItem]", list(group)) for _, group in groupby(items, key=lambda item: item.image)]
        found = blip._run(part, ((rounds[0].image, rounds) for rounds in same), prepare, rank)
        for rounds, ranked in zip(same, found, strict=True):
            yield from [ranked] * len(rounds) if isinstance(ranked, OpenBlipError) else ranked

    return predict


def logits(part: Runner, rows: Sequence[list[int]], memory: Memory) -> Tensor:
    """The ITM logit (B,) of "this is true" for dialogs ([ENC] first), which read one picture's memory."""
    found = torch.empty(len(rows))
    for places in by_length(rows, TEXT_ROWS):
        found[places] = (
            part.engine.require(MatchLogits).match_logits(*part.pad([rows[i] for i in places]), memory)[:, 1].cpu()
        )
    return found


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
