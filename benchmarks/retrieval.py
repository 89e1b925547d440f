"""Two-stage retrieval in both directions: `python -m benchmarks.retrieval` (`make bench-retrieval`).

ITC selects a shortlist of candidates for each query, and ITM re-ranks it. OpenBLIP and `transformers` run in turn on
the same images, texts and weights, and their scores must be equal. `--pocket` uses the bundled model instead, and
compares its rankings with pairs that are scored one by one.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import openblip
from benchmarks import machine
from benchmarks.contestants import Array, Entry, Transformers
from benchmarks.inference import HERE, write
from benchmarks.materials import SCALES, Materials, draw_image
from benchmarks.measure import agreement, alternate, ratio
from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source, Stream
from openblip.engine.protocols import Embeddings, MatchLogits
from openblip.evaluation import two_stage
from openblip.pipelines.base import TEXT_ROWS, TaskModel, iter_chunks

MAX_WORDS, MAX_TOKENS = 30, 35  # as in the authors' evaluation
COCO = (5_000, 25_000, 256)  # images, texts, shortlist
OURS, SHIPPED, BEST = "openblip", "transformers as shipped", "transformers, images once"
ROUNDING = 1e-4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; return 1 if scores or rankings differ."""
    options = read_options(arguments)
    record = machine.begin(options.threads)
    results, equal = run_pocket(options) if options.pocket else run_peers(options)
    name = options.name or ("retrieval_pocket" if options.pocket else "retrieval")
    write(record | results, options.results / f"{name}.json")
    return 0 if equal else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pocket", action="store_true", help="measure wall time and rankings of the bundled model")
    parser.add_argument("--images", type=int, default=None, help="number of images (default: 16, or 500 with --pocket)")
    parser.add_argument("--texts", type=int, default=None, help="number of texts (default: 40, or 2500 with --pocket)")
    parser.add_argument("-k", type=int, default=None, help="length of the shortlist (default: 4, or 128 with --pocket)")
    parser.add_argument("--rounds", type=int, default=None, help="number of rounds (default: 2 to 9, in 10 minutes)")
    parser.add_argument("--data", default=None, help="with --pocket: images with captions (default: random ones)")
    parser.add_argument("--queries", type=int, default=100, help="with --pocket: queries per direction to check")
    parser.add_argument("--scale", choices=list(SCALES), default="base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default=None, help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    for name, defaults in (("images", (16, 500)), ("texts", (40, 2500)), ("k", (4, 128))):
        if getattr(options, name) is None:
            setattr(options, name, defaults[options.pocket])
    return options


class Contestant(Protocol):
    """A library to measure."""

    def run_first_stage(self) -> Any:
        """Compute the ITC similarities."""
        ...

    def run_both_stages(self) -> Array:
        """Return the scores of texts for images, then of images for texts, in one vector."""
        ...


def run_peers(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure both stages and the first stage of each contestant, and estimate the time of a pair and of COCO."""
    materials = Materials(options.work, SCALES[options.scale])
    folder = materials.model("retrieval")
    inputs = materials.photos(options.images), materials.texts(options.texts), options.k
    contestants: dict[str, Contestant] = {
        SHIPPED: Shipped(folder, *inputs),
        BEST: Best(folder, *inputs),
        OURS: Ours(folder, *inputs),
    }
    scales, rounds = dict.fromkeys(contestants, 1.0), options.rounds
    both_calls = {name: contestant.run_both_stages for name, contestant in contestants.items()}
    first_calls = {name: contestant.run_first_stage for name, contestant in contestants.items()}
    both = alternate(both_calls, scales, rounds=rounds, budget=600)
    first = alternate(first_calls, scales, rounds=rounds, budget=120)
    pairs = count_pairs(both[OURS].output, options.images, options.texts)
    agreements = {name: agreement(timed.output, both[SHIPPED].output) for name, timed in both.items()}
    record: dict[str, Any] = {
        "scale": materials.describe(), "images": options.images, "texts": options.texts, "k": options.k,
        "pairs": pairs, "rows": {},
    }  # fmt: skip
    print(f"{options.images} images x {options.texts} texts, k {options.k}: {pairs} pairs to score")
    for name, timed in both.items():
        per_pair = max(0.0, timed.median - first[name].median) / pairs
        coco = extrapolate(first[name].median, per_pair, options.images, options.texts)
        record["rows"][name] = {
            "seconds": timed.seconds, "first_stage_seconds": first[name].seconds, "median": timed.median,
            "seconds_per_pair": per_pair, "coco_seconds": coco, "equal": agreements[name].same,
            "ratio": asdict(ratio(timed.seconds, both[OURS].seconds)),
        }  # fmt: skip
        speedup = "" if name == OURS else f"; ours is {ratio(timed.seconds, both[OURS].seconds)}"
        compared = "equal scores" if agreements[name].same else f"SCORES DIFFER: {agreements[name].text}"
        times = f"{timed.median:9.3f} s, {1000 * per_pair:8.2f} ms per pair, COCO {coco / 3600:9.1f} h"
        print(f"{name:26} {times}{speedup}; {compared}")
    return record, all(result.same for result in agreements.values())


def count_pairs(scores: Array, images: int, texts: int) -> int:
    """Return the number of pairs on either shortlist."""
    for_images, for_texts = scores.reshape(2, -1)
    selected = (for_images.reshape(images, texts) != two_stage.UNSCORED) | (
        for_texts.reshape(texts, images).T != two_stage.UNSCORED
    )
    return int(selected.sum())


def extrapolate(first: float, per_pair: float, images: int, texts: int) -> float:
    """Estimate the seconds for COCO's test set, if no pair is on both shortlists.

    The first stage is scaled by the number of images, whose encoding takes most of it.
    """
    coco_images, coco_texts, k = COCO
    return first / images * coco_images + per_pair * k * (coco_images + coco_texts)


class Ours:
    """The evaluation of OpenBLIP."""

    def __init__(self, folder: Path, photos: list[Image.Image], texts: list[str], k: int) -> None:
        self.blip = openblip.load(folder, device="cpu")
        self.pipeline = self.blip.pipeline("retrieval")
        self.photos, self.texts, self.k = photos, texts, k

    def run_first_stage(self) -> Any:
        model, embeddings = self.pipeline.model, []
        ids = two_stage.encode_texts(model, self.texts, MAX_WORDS, MAX_TOKENS)
        for photos in iter_chunks(self.photos, self.blip.batch_size):
            states = model.encode_images([model.open_image(photo) for photo in photos])
            embeddings.append(self.pipeline.embed_images(states))
        return torch.cat(embeddings) @ self.pipeline.embed_texts(ids).T

    def run_both_stages(self) -> Array:
        model = self.pipeline.model
        ids = two_stage.encode_texts(model, self.texts, MAX_WORDS, MAX_TOKENS)
        return _flatten(two_stage.score(model, self.photos, ids, self.k))


class Shipped:
    """`transformers` as shipped: one call for all similarities, and one call per pair on a shortlist."""

    def __init__(self, folder: Path, photos: list[Image.Image], texts: list[str], k: int) -> None:
        self.peer = Transformers(Entry("transformers", "eager", "fp32"), folder, "retrieval")
        self.photos, self.texts, self.k = photos, texts, k

    @torch.inference_mode()
    def run_first_stage(self) -> Any:
        inputs = self.peer._images(self.photos) | self.peer._texts(self.texts, grounded=False)
        return self.peer.model(**inputs, use_itm_head=False).itm_score

    @torch.inference_mode()
    def run_both_stages(self) -> Array:
        similarity = self.run_first_stage()
        logits = torch.zeros_like(similarity)
        for i, j in _pairs_on_shortlists(similarity, self.k):
            inputs = self.peer._images([self.photos[i]]) | self.peer._texts([self.texts[j]], grounded=True)
            logits[i, j] = self.peer.model(**inputs).itm_score[0, 1]
        return _mask_scores(similarity, logits, self.k)


class Best(Shipped):
    """The modules of `transformers`, called directly: each image is encoded once, and its texts in batches."""

    @torch.inference_mode()
    def run_first_stage(self) -> Any:
        return self._states()[1]

    @torch.inference_mode()
    def run_both_stages(self) -> Array:
        states, similarity = self._states()
        logits = torch.zeros_like(similarity)
        for i, pairs in itertools.groupby(_pairs_on_shortlists(similarity, self.k), lambda pair: pair[0]):
            for indices in iter_chunks([j for _, j in pairs], TEXT_ROWS):
                inputs = self.peer._texts([self.texts[j] for j in indices], grounded=True)
                image_states = states[i].expand(len(indices), -1, -1)
                output = self.peer.model.text_encoder(
                    **inputs,
                    encoder_hidden_states=image_states,
                    encoder_attention_mask=torch.ones(image_states.shape[:2]).long(),
                )
                logits[i, indices] = self.peer.model.itm_head(output.last_hidden_state[:, 0])[:, 1]
        return _mask_scores(similarity, logits, self.k)

    def _states(self) -> tuple[Tensor, Tensor]:
        model, normalize = self.peer.model, torch.nn.functional.normalize
        batches = iter_chunks(self.photos, 8)
        states = torch.cat([model.vision_model(**self.peer._images(batch)).last_hidden_state for batch in batches])
        texts = torch.from_numpy(self.peer.embed_texts(self.texts))
        return states, normalize(model.vision_proj(states[:, 0]), dim=-1) @ texts.T


def _pairs_on_shortlists(similarity: Tensor, k: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs on either shortlist, image by image."""
    selected = two_stage.select_candidates(similarity, k) | two_stage.select_candidates(similarity.T, k).T
    return ((i, j) for i, j in selected.nonzero().tolist())


def _mask_scores(similarity: Tensor, logits: Tensor, k: int) -> Array:
    scores = similarity + logits
    for_images = two_stage.select_candidates(similarity, k)
    for_texts = two_stage.select_candidates(similarity.T, k)
    return _flatten(two_stage.RetrievalScores.mask(scores, for_images, for_texts))


def _flatten(scores: two_stage.RetrievalScores) -> Array:
    """Return all scores in one vector."""
    return np.concatenate([scores.texts_of_images.ravel(), scores.images_of_texts.ravel()])


@dataclass(frozen=True)
class RankingCheck:
    """Comparison of rankings with pairs that were scored one by one.

    Attributes:
        queries: Number of queries.
        equal: Number of equal rankings.
        but_for_rounding: Number of rankings that differ only among ties, up to rounding.
    """

    queries: int
    equal: int
    but_for_rounding: int

    @property
    def agrees(self) -> bool:
        """Whether all rankings are equal, up to rounding."""
        return self.equal + self.but_for_rounding == self.queries


def run_pocket(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure the wall time of both stages, and compare some rankings with single pairs."""
    blip = openblip.load("pocket", task="retrieval", device="cpu")
    pipeline = blip.pipeline("retrieval")
    images, texts = _load_data(options) if options.data else _make_random_data(options, pipeline.model)
    ids = two_stage.encode_texts(pipeline.model, texts, MAX_WORDS, MAX_TOKENS)
    start = time.perf_counter()
    scores = two_stage.score(pipeline.model, images, ids, options.k)
    seconds = time.perf_counter() - start
    comparison = check_rankings(pipeline.model, images, ids, options.k, scores, options.queries)
    pairs = count_pairs(_flatten(scores), len(images), len(texts))
    summary = f"{comparison.equal} of {comparison.queries} rankings equal"
    summary += f", {comparison.but_for_rounding} except for rounding"
    print(
        f"pocket, {len(images)} images x {len(texts)} texts, k {options.k}: {seconds:.1f} s, {pairs} pairs; {summary}"
    )
    record = {"images": len(images), "texts": len(texts), "k": options.k, "pairs": pairs, "seconds": seconds}
    return {**record, "seconds_per_pair": seconds / pairs, "checked": asdict(comparison)}, comparison.agrees


@torch.inference_mode()
def check_rankings(
    model: TaskModel,
    images: Sequence[Any],
    rows: list[list[int]],
    k: int,
    scores: two_stage.RetrievalScores,
    max_queries: int,
) -> RankingCheck:
    """Compare rankings with the scores of single pairs, computed without batches and padding.

    Args:
        model: The model.
        images: All images.
        rows: Token ids of all texts.
        k: Length of the shortlist.
        scores: Scores of both stages.
        max_queries: Maximum number of queries per direction.

    Returns:
        The number of equal rankings.
    """
    states = [_state(model, image) for image in images]
    engine = model.engine.require(Embeddings)
    text_embeddings = np.stack([engine.embed_texts(*model.pad([row]))[0].numpy() for row in rows])
    image_embeddings = np.stack([engine.embed_images(state)[0].numpy() for state in states])
    generator = random.Random(0)
    equal = near = queries = 0
    for rankings, queries_by_index, candidates, score_pair in (
        (
            two_stage.rank_candidates(scores.texts_of_images),
            image_embeddings,
            text_embeddings,
            lambda i, j: _score_pair(model, states[i], rows[j]),
        ),
        (
            two_stage.rank_candidates(scores.images_of_texts),
            text_embeddings,
            image_embeddings,
            lambda j, i: _score_pair(model, states[i], rows[j]),
        ),
    ):
        for query in generator.sample(range(len(rankings)), min(max_queries, len(rankings))):
            ranking = rankings[query]
            cosines = candidates @ queries_by_index[query]
            shortlist = np.argsort(-cosines, kind="stable")[:k].tolist()
            pair_scores = {i: float(cosines[i]) + score_pair(query, i) for i in {*shortlist, *ranking}}
            expected = sorted(shortlist, key=lambda i: -pair_scores[i])
            queries += 1
            equal += expected == ranking
            near += expected != ranking and _differ_by_rounding(expected, ranking, pair_scores, cosines)
    return RankingCheck(queries, equal, near)


def _differ_by_rounding(
    expected: list[int], ranking: list[int], pair_scores: Mapping[int, float], cosines: Array
) -> bool:
    """Return whether rankings differ only among equal scores, or equal cosines at the end of the shortlist."""
    cutoff = min(float(cosines[i]) for i in expected)
    swapped = set(expected) ^ set(ranking)
    common = [[i for i in order if i not in swapped] for order in (ranking, expected)]
    return (
        len(expected) == len(ranking)
        and all(abs(pair_scores[i] - pair_scores[j]) <= ROUNDING for i, j in zip(*common, strict=True))
        and all(abs(float(cosines[i]) - cutoff) <= ROUNDING for i in swapped)
    )


def _state(model: TaskModel, image: Any) -> Tensor:
    return model.encode_images([model.open_image(image)])


def _score_pair(model: TaskModel, state: Tensor, row: list[int]) -> float:
    ids, mask = model.pad([[model.tokenizer.enc_id, *row[1:]]])
    return float(model.engine.require(MatchLogits).match_logits(ids, mask, state)[0, 1])


def _load_data(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Return the first images of the data with enough captions, and their captions."""
    captions_per_image, source = options.texts // options.images, open_source(options.data)
    images: list[Any] = []
    texts: list[str] = []
    for record in _records(source):
        if len(record.captions) >= captions_per_image and len(images) < options.images:
            images.append(open_image(record.images[0]))
            texts += record.captions[:captions_per_image]
    return images, texts


def _records(source: Source | Stream) -> Iterator[Record]:
    if isinstance(source, Source):
        return iter(source)
    entries = (entry for shard in range(source.shards) for entry in source.read(shard))
    return (entry for entry in entries if isinstance(entry, Record))


def _make_random_data(options: argparse.Namespace, model: TaskModel) -> tuple[list[Any], list[str]]:
    """Return images of color patches, and texts of words in the vocabulary."""
    words = [piece for piece in model.tokenizer.vocab_pieces if piece.isalpha() and len(piece) > 2]
    generator = random.Random(0)
    texts = [" ".join(generator.choices(words, k=10)) for _ in range(options.texts)]
    return [draw_image(seed, 160, 120) for seed in range(options.images)], texts


if __name__ == "__main__":
    sys.exit(main())
