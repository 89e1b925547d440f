"""Retrieval both ways: a shortlist by ITC, re-ranked by ITM, and recall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openblip.blip import Blip
from openblip.evaluation import two_stage
from openblip.evaluation.metrics import ranks
from openblip.evaluation.protocols.base import Item, Items, RetrievalPreset
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated


def evaluated(
    blip: Blip, items: Items, preset: RetrievalPreset, *, seen: Callable[[Item], Any] = lambda item: item.image
) -> Evaluated:
    """Recall both ways; ``seen`` is what the model is shown of an item."""
    runner = blip._part("match")
    texts = [text for item in items for text in item.texts]
    owner = [i for i, item in enumerate(items) for _ in item.texts]
    ids = two_stage.texts_as_ids(runner, texts, preset.max_words, preset.max_tokens)
    images = [seen(item) for item in items]
    scores = two_stage.score(runner, images, ids, preset.k, batch_size=blip.batch_size, workers=blip.workers)
    own: list[list[int]] = [[] for _ in items]
    for j, i in enumerate(owner):
        own[i].append(j)
    found = {
        "txt": ranks.from_matrix(scores.texts_of_images, own),
        "img": ranks.from_matrix(scores.images_of_texts, [[i] for i in owner]),
    }
    metrics: dict[str, float | None] = {}
    for name, one in found.items():
        metrics |= {f"{name}_r{k}": value for k, value in one.recall.items()}
        metrics |= {f"{name}_r_mean": one.mean_recall, f"{name}_median_rank": one.median_rank}
    metrics["r_mean"] = (found["txt"].mean_recall + found["img"].mean_recall) / 2
    best = scores.texts_of_images.argmax(1)
    shown = [
        Shown(
            item.id,
            item.image,
            [("first", texts[best[i]]), *(("its own", text) for text in item.texts)],
            1 / found["txt"].items[i],
        )
        for i, item in enumerate(items)
    ]
    return Evaluated(metrics, [], shown, {})
