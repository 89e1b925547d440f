"""Retrieval in both directions: a shortlist by ITC, re-ranked by ITM, and recall.

A text is named by its number, in the order of the images that texts belong to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files, two_stage
from openblip.evaluation.evaluators.base import Evaluator, Predictions, TaskScores, make_input
from openblip.evaluation.metrics import ranks
from openblip.evaluation.metrics.bootstrap import mean_intervals
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import Item, Items, RetrievalPreset
from openblip.evaluation.report import ReportItem
from openblip.evaluation.retrieval_store import RetrievalStore
from openblip.evaluation.workspace import Workspace

FOLDER = "retrieval"  # below the folder of the run
MEDIAN_OF_VIDEOS = "vid_mdR"  # a rank, unlike the other metrics


@dataclass(frozen=True)
class ImageRanking:
    """The rankings of one image, best first, without the texts and images that are off the shortlists.

    Attributes:
        texts: The numbers of the texts for the image.
        images: The ids of the images for each of the image's own texts, by the number of the text.
        best_text: The first of `texts`, as a text.
    """

    texts: list[int]
    images: dict[int, list[ItemId]]
    best_text: str


@dataclass(frozen=True)
class Direction:
    """The rankings of one direction.

    Attributes:
        rankings: The results of each query, best first.
        relevant: The relevant results of each query.
    """

    rankings: Mapping[ItemId, Sequence[ItemId]]
    relevant: Mapping[ItemId, Sequence[ItemId]]

    def score(self) -> ranks.RecallScores[ItemId]:
        """Score the rankings."""
        return ranks.score(self.rankings, self.relevant)


class RetrievalEvaluator(Evaluator[ImageRanking]):
    """Evaluates retrieval: `txt` of texts for images, and `img` of images (`vid` of videos) for texts."""

    action = "ranked"
    preset: RetrievalPreset

    def predict(self, items: Items) -> Iterator[ImageRanking | OpenBlipError]:
        """Yield the rankings of each image. All items are ranked together."""
        predictions = self.collect(items, Workspace())
        for item in items:
            error = predictions.errors.get(item.id)
            yield predictions.values[item.id] if error is None else EvaluationError(error)

    def parse(self, value: object) -> ImageRanking:
        """Raise an error: rankings depend on all items, and are resumed from the store."""
        raise EvaluationError("cannot be resumed per item: rankings depend on all items")

    def collect(self, items: Items, workspace: Workspace) -> Predictions[ImageRanking]:
        """Rank all items together. Earlier results are read from the workspace's folder `retrieval`.

        An item that cannot be opened is excluded together with its texts.
        """
        model = self.blip.pipeline("retrieval").model
        texts = [text for item in items for text in item.texts]
        ids = two_stage.encode_texts(
            model,
            texts,
            self.preset.max_words,
            self.preset.max_tokens,
            strip_punctuation=self.preset.strip_punctuation,
        )
        folder = workspace.folder / FOLDER if workspace.folder is not None else None
        with RetrievalStore(folder, {**workspace.key, "items": _digest(items)}) as store:
            scores = two_stage.score(
                model,
                [make_input(item, self.preset.num_frames) for item in items],
                ids,
                self.preset.shortlist,
                image_of_text=[number for number, item in enumerate(items) for _ in item.texts],
                store=store,
                progress=workspace.progress,
            )
        text_rankings = two_stage.rank_candidates(scores.texts_of_images)
        image_rankings = two_stage.rank_candidates(scores.images_of_texts)
        values, errors = {}, {}
        for number, (item, own_texts) in enumerate(zip(items, _number_texts(items).values(), strict=True)):
            if number in scores.failed:
                errors[item.id] = scores.failed[number]
                continue
            images = {text: [items[image].id for image in image_rankings[text]] for text in own_texts}
            values[item.id] = ImageRanking(text_rankings[number], images, texts[text_rankings[number][0]])
        return Predictions(values, errors)

    def score(self, items: Items, predictions: Mapping[ItemId, ImageRanking]) -> TaskScores:
        """Compute recall and median rank in both directions."""
        directions = _directions(items, predictions)
        scores = {name: direction.score() for name, direction in directions.items()}
        metrics: dict[str, float | None] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for name, recall in scores.items():
            hits = {f"{name}_r{k}": [float(rank <= k) for rank in recall.items.values()] for k in recall.recall}
            intervals |= mean_intervals(hits)
            metrics |= {f"{name}_r{k}": value for k, value in recall.recall.items()}
            metrics |= {f"{name}_r_mean": recall.mean_recall, f"{name}_median_rank": recall.median_rank}
        metrics["r_mean"] = sum(recall.mean_recall for recall in scores.values()) / len(scores)
        if self.preset.num_frames is not None:
            names = {name: name.replace("img_", "vid_") for name in metrics}  # the names of the authors' code
            names["img_median_rank"] = MEDIAN_OF_VIDEOS
            metrics = {names[name]: value for name, value in metrics.items()}
            intervals = {names[name]: interval for name, interval in intervals.items()}
        reciprocal_ranks = {key: 1 / rank for key, rank in scores["txt"].items.items()}
        return TaskScores(metrics, reciprocal_ranks, intervals=intervals)

    def show(self, item: Item, prediction: ImageRanking | None, error: str, score: float | None) -> ReportItem:
        """Return the text that is ranked first next to the texts of the image."""
        if prediction is None:
            return ReportItem(item.id, item.image, [("error", error)], None)
        lines = [("ranked first", prediction.best_text), *(("own text", text) for text in item.texts)]
        return ReportItem(item.id, item.image, lines, score, metric="1 / rank")

    def write(self, items: Items, predictions: Mapping[ItemId, ImageRanking], folder: Path) -> list[Path]:
        """Write the rankings and the relevant results, as `openblip eval score retrieval` reads them."""
        paths = []
        for name, direction in _directions(items, predictions).items():
            for kind, lists in (("ranking", direction.rankings), ("relevant", direction.relevant)):
                path = folder / f"{kind}_{name}.jsonl"
                records = [{"query_id": key, kind: list(ids)} for key, ids in lists.items()]
                files.write_json_lines(path, records)
                paths.append(path)
        return paths


def _number_texts(items: Items) -> dict[ItemId, list[int]]:
    """Return the numbers of the texts of each item."""
    numbers: dict[ItemId, list[int]] = {}
    count = 0
    for item in items:
        numbers[item.id] = list(range(count, count + len(item.texts)))
        count += len(item.texts)
    return numbers


def _directions(items: Items, predictions: Mapping[ItemId, ImageRanking]) -> dict[str, Direction]:
    """Return the rankings of texts for images (`txt`) and of images for texts (`img`)."""
    texts_of_images: dict[ItemId, list[ItemId]] = {}
    own_texts: dict[ItemId, list[ItemId]] = {}
    images_of_texts: dict[ItemId, list[ItemId]] = {}
    own_image: dict[ItemId, list[ItemId]] = {}
    for item in items:
        ranking = predictions[item.id]
        texts_of_images[item.id] = list(ranking.texts)
        own_texts[item.id] = list(ranking.images)
        for text, images in ranking.images.items():
            images_of_texts[text] = images
            own_image[text] = [item.id]
    return {"txt": Direction(texts_of_images, own_texts), "img": Direction(images_of_texts, own_image)}


def _digest(items: Items) -> str:
    """Return a digest of the names of the images and of the texts."""
    content = json.dumps([[item.id, Path(item.image).name, item.texts] for item in items])
    return blake2b(content.encode(), digest_size=8).hexdigest()
