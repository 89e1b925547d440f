"""Retrieval both ways: a shortlist by ITC, re-ranked by ITM, and recall.

Texts are named by their number, in the order of the images that they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from openblip.blip import Blip
from openblip.errors import EvaluationError
from openblip.evaluation import files, two_stage
from openblip.evaluation.metrics import ranks
from openblip.evaluation.protocols.base import Item, Items, RetrievalPreset
from openblip.evaluation.report import Shown
from openblip.evaluation.store import Store
from openblip.evaluation.tasks.base import Evaluated, Notify

KEPT = "retrieval"  # the folder of what a stopped run goes on from


@dataclass(frozen=True)
class Direction:
    """What was found for each query, the best first, and what belongs to it."""

    found: Mapping[Any, Sequence[Any]]
    right: Mapping[Any, Sequence[Any]]

    def scores(self) -> ranks.RecallScores:
        return ranks.from_lists(self.found, self.right)

    def write(self, out: Path, name: str) -> list[Path]:
        """The files that ``openblip eval score retrieval`` takes."""
        made = []
        for kind, field, lists in (("ranking", "ranking", self.found), ("relevant", "relevant", self.right)):
            lines = [json.dumps({"query_id": key, field: list(ids)}, ensure_ascii=False) for key, ids in lists.items()]
            made.append(out / f"{kind}_{name}.jsonl")
            files.write_text(made[-1], "".join(f"{line}\n" for line in lines))
        return made


def evaluated(
    blip: Blip, items: Items, preset: RetrievalPreset, *, key: Mapping[str, Any], out: Path | None, notify: Notify,
    seen: Callable[[Item], Any] = lambda item: item.image,
) -> Evaluated:  # fmt: skip
    """Recall both ways: ``txt`` of texts for images, ``img`` of images for texts.

    What was computed before lies in ``out``, where the rankings go too. ``seen`` is what the model is shown of an item;
    one that it cannot open is left out with its texts. Raises :class:`EvaluationError` if none is left.
    """
    pipeline = blip.pipeline("retrieval")
    texts = [text for item in items for text in item.texts]
    owners = [number for number, item in enumerate(items) for _ in item.texts]
    ids = two_stage.texts_as_ids(pipeline, texts, preset.max_words, preset.max_tokens, bare=preset.bare)
    with Store(out / KEPT if out is not None else None, {**key, "items": _digest(items)}) as store:
        scores = two_stage.score(
            pipeline, [seen(item) for item in items], ids, preset.k, owners=owners, batch_size=blip.batch_size,
            num_workers=blip.num_workers, store=store, notify=notify,
        )  # fmt: skip
    failed = {items[number].id: why for number, why in scores.failed.items()}
    if len(failed) == len(items):
        raise EvaluationError(f"nothing could be ranked; the first error: {next(iter(failed.values()))}")
    directions = _directions(items, scores)
    recalls = {name: one.scores() for name, one in directions.items()}
    made = [path for name, one in directions.items() for path in one.write(out, name)] if out is not None else []
    shown = _shown(items, texts, directions["txt"], recalls["txt"], failed)
    return Evaluated(_metrics(recalls), [], shown, failed, files=made)


def _digest(items: Items) -> str:
    """Which pictures and texts they are, wherever the pictures lie."""
    told = json.dumps([[item.id, Path(item.image).name, item.texts] for item in items])
    return blake2b(told.encode(), digest_size=8).hexdigest()


def _directions(items: Items, scores: two_stage.Scores) -> dict[str, Direction]:
    """What was found for the images that could be opened, and for their texts."""
    good = [number for number in range(len(items)) if number not in scores.failed]
    owner = [number for number, item in enumerate(items) for _ in item.texts]
    own: dict[Any, list[int]] = {items[number].id: [] for number in good}
    of = {text: items[number].id for text, number in enumerate(owner) if number not in scores.failed}
    for text, image in of.items():
        own[image].append(text)
    for_images = two_stage.rankings(scores.texts_of_images)
    for_texts = two_stage.rankings(scores.images_of_texts)
    return {
        "txt": Direction({items[number].id: for_images[number] for number in good}, own),
        "img": Direction(
            {text: [items[i].id for i in for_texts[text]] for text in of}, {text: [image] for text, image in of.items()}
        ),
    }


def _metrics(recalls: Mapping[str, ranks.RecallScores]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for name, one in recalls.items():
        metrics |= {f"{name}_r{k}": value for k, value in one.recall.items()}
        metrics |= {f"{name}_r_mean": one.mean_recall, f"{name}_median_rank": one.median_rank}
    metrics["r_mean"] = sum(one.mean_recall for one in recalls.values()) / len(recalls)
    return metrics


def _shown(
    items: Items, texts: list[str], found: Direction, recall: ranks.RecallScores, failed: Mapping[Any, str]
) -> list[Shown]:
    return [
        Shown(item.id, item.image, [("error", failed[item.id])], None)
        if item.id in failed
        else Shown(
            item.id,
            item.image,
            [("first", texts[found.found[item.id][0]]), *(("its own", text) for text in item.texts)],
            1 / recall.items[item.id],
            measure="1 / rank",
        )
        for item in items
    ]
