"""Two-stage retrieval both ways: ``python -m benchmarks.retrieval`` (``make bench-retrieval``).

ITC takes a shortlist of every query's candidates, ITM re-ranks it. OpenBLIP does it beside `transformers`, in turn, on
the same pictures, texts and weights; the scores must be equal. ``--pocket`` takes the bundled model instead, and holds
its rankings against pairs that are judged one by one.
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
from benchmarks.materials import SCALES, Materials, picture
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
    """Measure, print, write the record; 1 if scores or rankings differ."""
    options = read_options(arguments)
    opening = machine.begin(options.threads)
    found, equal = pocket(options) if options.pocket else peers(options)
    record = opening | found
    write(record, options.results / f"{options.name or ('retrieval_pocket' if options.pocket else 'retrieval')}.json")
    return 0 if equal else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pocket", action="store_true", help="the bundled model: rankings and wall time")
    parser.add_argument("--images", type=int, default=None, help="16, or 500 with --pocket")
    parser.add_argument("--texts", type=int, default=None, help="40, or 2500 with --pocket")
    parser.add_argument("-k", type=int, default=None, help="the shortlist: 4, or 128 with --pocket")
    parser.add_argument("--rounds", type=int, default=None, help="as many as begin within ten minutes, 2 to 9")
    parser.add_argument("--data", default=None, help="for --pocket: pictures with captions (default: drawn ones)")
    parser.add_argument("--sample", type=int, default=100, help="for --pocket: queries each way that are judged singly")
    parser.add_argument("--scale", choices=list(SCALES), default="base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="where models are kept")
    parser.add_argument("--name", default=None, help="of the file of results")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    for name, usual in (("images", (16, 500)), ("texts", (40, 2500)), ("k", (4, 128))):
        if getattr(options, name) is None:
            setattr(options, name, usual[options.pocket])
    return options


# --- beside transformers ------------------------------------------------------------------------------------------


class Contestant(Protocol):
    """``first`` is ITC alone; ``whole`` both stages: scores of texts for images, then of images for texts, in a row."""

    def first(self) -> Any: ...
    def whole(self) -> Array: ...


def peers(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Everyone's seconds, for both stages and for the first alone, and what a pair and all of COCO come to."""
    materials = Materials(options.work, SCALES[options.scale])
    folder = materials.model("retrieval")
    given = materials.photos(options.images), materials.texts(options.texts), options.k
    contestants: dict[str, Contestant] = {
        SHIPPED: Shipped(folder, *given), BEST: Best(folder, *given), OURS: Ours(folder, *given)
    }  # fmt: skip
    scales = dict.fromkeys(contestants, 1.0)
    whole = alternate({name: one.whole for name, one in contestants.items()}, scales, rounds=options.rounds, budget=600)
    first = alternate({name: one.first for name, one in contestants.items()}, scales, rounds=options.rounds, budget=120)
    pairs = count_pairs(whole[OURS].output, options.images, options.texts)
    found = {name: agreement(timed.output, whole[SHIPPED].output) for name, timed in whole.items()}
    record: dict[str, Any] = {
        "scale": materials.describe(), "images": options.images, "texts": options.texts, "k": options.k,
        "pairs": pairs, "rows": {},
    }  # fmt: skip
    print(f"{options.images} images x {options.texts} texts, k {options.k}: {pairs} pairs to judge")
    for name, timed in whole.items():
        per_pair = max(0.0, timed.median - first[name].median) / pairs
        coco = extrapolated(first[name].median, per_pair, options.images, options.texts)
        record["rows"][name] = {
            "seconds": timed.seconds, "first_stage_seconds": first[name].seconds, "median": timed.median,
            "seconds_per_pair": per_pair, "coco_seconds": coco, "equal": found[name].same,
            "ratio": asdict(ratio(timed.seconds, whole[OURS].seconds)),
        }  # fmt: skip
        said = "" if name == OURS else f"; ours is {ratio(timed.seconds, whole[OURS].seconds)}"
        compared = "equal scores" if found[name].same else f"SCORES DIFFER: {found[name].text}"
        took = f"{timed.median:9.3f} s, {1000 * per_pair:8.2f} ms a pair, COCO {coco / 3600:9.1f} h"
        print(f"{name:26} {took}{said}; {compared}")
    return record, all(one.same for one in found.values())


def count_pairs(scores: Array, images: int, texts: int) -> int:
    """The pairs on either shortlist."""
    for_images, for_texts = scores.reshape(2, -1)
    both = (for_images.reshape(images, texts) != two_stage.UNSCORED) | (
        for_texts.reshape(texts, images).T != two_stage.UNSCORED
    )
    return int(both.sum())


def extrapolated(first: float, per_pair: float, images: int, texts: int) -> float:
    """Seconds for COCO's test set, if no pair is on both shortlists.

    The first stage is all counted as if it were for images, which are by far the most of it.
    """
    coco_images, coco_texts, k = COCO
    return first / images * coco_images + per_pair * k * (coco_images + coco_texts)


class Ours:
    """OpenBLIP's evaluation."""

    def __init__(self, folder: Path, photos: list[Image.Image], texts: list[str], k: int) -> None:
        self.blip = openblip.load(folder, device="cpu")
        self.pipeline = self.blip.pipeline("retrieval")
        self.photos, self.texts, self.k = photos, texts, k

    def first(self) -> Any:
        model, embeddings = self.pipeline.model, []
        ids = two_stage.encode_texts(model, self.texts, MAX_WORDS, MAX_TOKENS)
        for photos in iter_chunks(self.photos, self.blip.batch_size):
            states = model.encode_images([model.open_image(photo) for photo in photos])
            embeddings.append(self.pipeline.embed_images(states))
        return torch.cat(embeddings) @ self.pipeline.embed_texts(ids).T

    def whole(self) -> Array:
        model = self.pipeline.model
        ids = two_stage.encode_texts(model, self.texts, MAX_WORDS, MAX_TOKENS)
        return _flat(two_stage.score(model, self.photos, ids, self.k))


class Shipped:
    """`transformers` as shipped: one call for the cosines, and one for every pair on a shortlist."""

    def __init__(self, folder: Path, photos: list[Image.Image], texts: list[str], k: int) -> None:
        self.peer = Transformers(Entry("transformers", "eager", "fp32"), folder, "retrieval")
        self.photos, self.texts, self.k = photos, texts, k

    @torch.inference_mode()
    def first(self) -> Any:
        inputs = self.peer._pictures(self.photos) | self.peer._texts(self.texts, grounded=False)
        return self.peer.model(**inputs, use_itm_head=False).itm_score

    @torch.inference_mode()
    def whole(self) -> Array:
        similarity = self.first()
        logits = torch.zeros_like(similarity)
        for i, j in _either(similarity, self.k):
            inputs = self.peer._pictures([self.photos[i]]) | self.peer._texts([self.texts[j]], grounded=True)
            logits[i, j] = self.peer.model(**inputs).itm_score[0, 1]
        return _both(similarity, logits, self.k)


class Best(Shipped):
    """The same library with its parts called by hand: every image encoded once, and its texts in batches."""

    @torch.inference_mode()
    def first(self) -> Any:
        return self._states()[1]

    @torch.inference_mode()
    def whole(self) -> Array:
        states, similarity = self._states()
        logits = torch.zeros_like(similarity)
        for i, pairs in itertools.groupby(_either(similarity, self.k), lambda pair: pair[0]):
            for some in iter_chunks([j for _, j in pairs], TEXT_ROWS):
                inputs = self.peer._texts([self.texts[j] for j in some], grounded=True)
                seen = states[i].expand(len(some), -1, -1)
                found = self.peer.model.text_encoder(
                    **inputs, encoder_hidden_states=seen, encoder_attention_mask=torch.ones(seen.shape[:2]).long()
                )
                logits[i, some] = self.peer.model.itm_head(found.last_hidden_state[:, 0])[:, 1]
        return _both(similarity, logits, self.k)

    def _states(self) -> tuple[Tensor, Tensor]:
        model, unit = self.peer.model, torch.nn.functional.normalize
        states = torch.cat(
            [model.vision_model(**self.peer._pictures(some)).last_hidden_state for some in iter_chunks(self.photos, 8)]
        )
        texts = torch.from_numpy(self.peer.embed_texts(self.texts))
        return states, unit(model.vision_proj(states[:, 0]), dim=-1) @ texts.T


def _either(similarity: Tensor, k: int) -> Iterator[tuple[int, int]]:
    """The pairs on either shortlist, image by image."""
    selected = two_stage.select_candidates(similarity, k) | two_stage.select_candidates(similarity.T, k).T
    return ((i, j) for i, j in selected.nonzero().tolist())


def _both(similarity: Tensor, logits: Tensor, k: int) -> Array:
    scores = similarity + logits
    for_images = two_stage.select_candidates(similarity, k)
    for_texts = two_stage.select_candidates(similarity.T, k)
    return _flat(two_stage.RetrievalScores.mask(scores, for_images, for_texts))


def _flat(scores: two_stage.RetrievalScores) -> Array:
    """All scores in a row, as contestants give them."""
    return np.concatenate([scores.texts_of_images.ravel(), scores.images_of_texts.ravel()])


# --- the bundled model --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """Of the queries that were judged pair by pair: how many have the very ranking, and how many only but for ties."""

    queries: int
    equal: int
    but_for_rounding: int

    @property
    def agrees(self) -> bool:
        return self.equal + self.but_for_rounding == self.queries


def pocket(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Wall time of the whole, and a sample of its rankings against single pairs."""
    blip = openblip.load("pocket", task="retrieval", device="cpu")
    pipeline = blip.pipeline("retrieval")
    images, texts = _described(options) if options.data else _drawn(options, pipeline.model)
    ids = two_stage.encode_texts(pipeline.model, texts, MAX_WORDS, MAX_TOKENS)
    start = time.perf_counter()
    scores = two_stage.score(pipeline.model, images, ids, options.k)
    seconds = time.perf_counter() - start
    checked = check(pipeline.model, images, ids, options.k, scores, options.sample)
    pairs = count_pairs(_flat(scores), len(images), len(texts))
    said = f"{checked.equal} of {checked.queries} rankings equal, {checked.but_for_rounding} but for rounding"
    print(f"pocket, {len(images)} images x {len(texts)} texts, k {options.k}: {seconds:.1f} s, {pairs} pairs; {said}")
    record = {"images": len(images), "texts": len(texts), "k": options.k, "pairs": pairs, "seconds": seconds}
    return {**record, "seconds_per_pair": seconds / pairs, "checked": asdict(checked)}, checked.agrees


@torch.inference_mode()
def check(
    runner: TaskModel,
    images: Sequence[Any],
    rows: list[list[int]],
    k: int,
    scores: two_stage.RetrievalScores,
    sample: int,
) -> Checked:
    """Some queries each way, each candidate judged alone, of images that were encoded alone: no batches, no padding."""
    states = [_state(runner, image) for image in images]
    engine = runner.engine.require(Embeddings)
    vectors = np.stack([engine.embed_texts(*runner.pad([row]))[0].numpy() for row in rows])
    seen = np.stack([engine.embed_images(state)[0].numpy() for state in states])
    draw = random.Random(0)
    equal = near = queries = 0
    for found, query_vectors, candidates, judge in (
        (
            two_stage.rank_candidates(scores.texts_of_images),
            seen,
            vectors,
            lambda i, j: _judged(runner, states[i], rows[j]),
        ),
        (
            two_stage.rank_candidates(scores.images_of_texts),
            vectors,
            seen,
            lambda j, i: _judged(runner, states[i], rows[j]),
        ),
    ):
        for query in draw.sample(range(len(found)), min(sample, len(found))):
            cosines = candidates @ query_vectors[query]
            short = np.argsort(-cosines, kind="stable")[:k].tolist()
            plain = {other: float(cosines[other]) + judge(query, other) for other in {*short, *found[query]}}
            wanted = sorted(short, key=lambda other: -plain[other])
            queries += 1
            equal += wanted == found[query]
            near += wanted != found[query] and _near(wanted, found[query], plain, cosines)
    return Checked(queries, equal, near)


def _near(wanted: list[int], found: list[int], plain: Mapping[int, float], cosines: Array) -> bool:
    """Whether rankings differ only where scores, or cosines at the end of the shortlist, are equal but for rounding."""
    edge = min(float(cosines[other]) for other in wanted)
    swapped = set(wanted) ^ set(found)
    ours, theirs = ([other for other in one if other not in swapped] for one in (found, wanted))
    return (
        len(wanted) == len(found)
        and all(abs(plain[one] - plain[other]) <= ROUNDING for one, other in zip(ours, theirs, strict=True))
        and all(abs(float(cosines[other]) - edge) <= ROUNDING for other in swapped)
    )


def _state(runner: TaskModel, image: Any) -> Tensor:
    return runner.encode_images([runner.open_image(image)])


def _judged(runner: TaskModel, state: Tensor, row: list[int]) -> float:
    ids, mask = runner.pad([[runner.tokenizer.enc_id, *row[1:]]])
    return float(runner.engine.require(MatchLogits).match_logits(ids, mask, state)[0, 1])


def _described(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """The first pictures of the data that have captions, with as many of them as make up the texts."""
    each, source = options.texts // options.images, open_source(options.data)
    images: list[Any] = []
    texts: list[str] = []
    for record in _records(source):
        if len(record.captions) >= each and len(images) < options.images:
            images.append(open_image(record.images[0]))
            texts += record.captions[:each]
    return images, texts


def _records(source: Source | Stream) -> Iterator[Record]:
    if isinstance(source, Source):
        return iter(source)
    read = (one for shard in range(source.shards) for one in source.read(shard))
    return (one for one in read if isinstance(one, Record))


def _drawn(options: argparse.Namespace, runner: TaskModel) -> tuple[list[Any], list[str]]:
    """Pictures of coloured patches, and texts of words that the model knows."""
    words = [piece for piece in runner.tokenizer.vocab_pieces if piece.isalpha() and len(piece) > 2]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=10)) for _ in range(options.texts)]
    return [picture(seed, 160, 120) for seed in range(options.images)], texts


if __name__ == "__main__":
    sys.exit(main())
