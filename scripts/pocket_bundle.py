"""Gather the trained models of ``pocket`` in a bundle, stored in half precision, and measure what was stored.

    python scripts/pocket_bundle.py --runs runs/pocket --data DATA --out runs/pocket/bundle

Figures are those of the bundle as a user loads it, on ``DATA/val``, of which nothing was trained on: captions (BLEU,
CIDEr), retrieval among the captioned photographs by ITC and re-ranked by ITM, answers against the commonest answer, and
boxes against the best box that is always the same. They are printed, and written to ``OUT/../figures.json``.

    python scripts/pocket_bundle.py --data DATA --engine openvino --precision int8

Another engine or precision is measured too, and then held against plain PyTorch in fp32: the cosine of the pictures'
embeddings, and the share of pairs of texts that ITM puts in the same order.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import openblip
from openblip.blip import Blip
from openblip.checkpoints import bundle, read, write
from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.evaluation.metrics import captions
from openblip.tasks import TaskName

MEMBERS: dict[TaskName, str] = {"caption": "caption", "vqa": "vqa", "retrieval": "retrieval", "grounding": "grounding"}
DECODINGS: dict[str, dict[str, Any]] = {
    "3 beams": {"num_beams": 3},
    "5 beams, length_penalty 0": {"num_beams": 5, "length_penalty": 0.0},
}
K = 16  # photographs that ITM re-ranks for each caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/pocket"), help="what recipes/pocket left behind")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/bundle"))
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    if not (options.out / bundle.FILE).exists():
        store(options.runs, options.out)
    blip = openblip.load(options.out, engine=options.engine, precision=options.precision, batch_size=64)
    figures: dict[str, Any] = {}
    for name, found in measure(blip, _records(options.data / "val")):
        figures[name] = found
        print(name, json.dumps(found), flush=True)
    if (options.engine, options.precision) != ("torch", "fp32"):
        plain = openblip.load(options.out, batch_size=64)
        figures["beside fp32"] = found = agreement(blip, plain, _records(options.data / "val"))
        print("beside fp32", json.dumps(found), flush=True)
    name = "figures.json" if options.precision == "fp32" else f"figures-{options.engine}-{options.precision}.json"
    (options.out.parent / name).write_text(json.dumps(figures, indent=2) + "\n")


def store(runs: Path, out: Path) -> None:
    """Hub folders in half precision, a quarter of what is trained with the optimizer's state."""
    models: dict[TaskName, Path] = {}
    for task, run in MEMBERS.items():
        if (folder := runs / run / "model").is_dir():
            loaded = read.load(folder)
            write.save(loaded, out / task, dtype=torch.float16)
            models[task] = out / task
    bundle.write(out, models)


def measure(blip: Blip, records: list[Record]) -> Iterator[tuple[str, Any]]:
    """Figures by name."""
    captioned = [record for record in records if record.captions]
    pictures = [open_image(record.images[0]) for record in captioned]
    yield "captions", caption_figures(blip, captioned, pictures)
    if "retrieval" in blip.tasks:
        yield "retrieval", retrieval_figures(blip, captioned, pictures)
    if "vqa" in blip.tasks:
        yield "answers", answer_figures(blip, records)
    if "grounding" in blip.tasks:
        yield "boxes", box_figures(blip, captioned, pictures)


def caption_figures(blip: Blip, records: Sequence[Record], pictures: Sequence[Any]) -> dict[str, dict[str, float]]:
    """As the paper decodes, and as a model does best whose long captions ramble: by their sums, with no room given."""
    texts = {record.address: record.captions for record in records}
    figures = {}
    for name, decoding in DECODINGS.items():
        said = blip.caption(list(pictures), max_new_tokens=20, **decoding)
        found = captions.score({key: caption.text for key, caption in zip(texts, said, strict=True)}, texts)
        figures[name] = {metric: round(value, 4) for metric, value in found.corpus.items() if value is not None}
    return figures


def retrieval_figures(blip: Blip, records: Sequence[Record], pictures: Sequence[Any]) -> dict[str, float]:
    """Text to image, all captions: by ITC, and the K best by ITC put in order by ITM and ITC together."""
    images = blip.embed_images(list(pictures))
    texts = [text for record in records for text in record.captions]
    owner = np.array([place for place, record in enumerate(records) for _ in record.captions])
    scores = blip.embed_texts(texts) @ images.T
    figures = {f"itc_r{k}": value for k, value in _recall(scores, owner).items()}
    some = range(0, len(texts), 5)  # one caption of each photograph, which is what ITM's time allows
    encoded = blip.encode_images(list(pictures), task="retrieval")
    ranked = scores[list(some)].copy()
    for row, place in enumerate(some):
        best = np.argsort(-ranked[row], kind="stable")[:K]
        matches = blip.match([encoded[image] for image in best], texts[place])
        ranked[row, best] += 10 + np.array([match.probability for match in matches])
    firsts = _recall(scores[list(some)], owner[list(some)])
    reranked = _recall(ranked, owner[list(some)])
    figures |= {f"first_itc_r{k}": value for k, value in firsts.items()}
    return figures | {f"first_itm_r{k}": value for k, value in reranked.items()}


def _recall(scores: NDArray[Any], owner: NDArray[Any]) -> dict[int, float]:
    ahead = (scores > scores[np.arange(len(scores)), owner][:, None]).sum(1)
    return {k: round(100 * float((ahead < k).mean()), 2) for k in (1, 5, 10)}


def answer_figures(blip: Blip, records: Sequence[Record]) -> dict[str, Any]:
    """Share of answers that are exactly right, and of the commonest answer; people's questions apart from made ones."""
    found: dict[str, Any] = {}
    rows: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for record in records:
        if record.questions:
            picture = open_image(record.images[0])
            said = blip.ask(picture, [question.text for question in record.questions], num_beams=1)
            for question, answer in zip(record.questions, said, strict=True):
                rows[question.auto].append((answer.text, question.answers[0]))
    for auto, pairs in rows.items():
        commonest = Counter(truth for _, truth in pairs).most_common(1)[0][1]
        found["made by rule" if auto else "by people"] = {
            "questions": len(pairs),
            "right": round(100 * sum(a == b for a, b in pairs) / len(pairs), 2),
            "commonest": round(100 * commonest / len(pairs), 2),
        }
    return found


def box_figures(blip: Blip, records: Sequence[Record], pictures: Sequence[Any]) -> dict[str, float]:
    """Share of phrases whose box has an IoU of 0.5 or more with the right one, and of boxes always the same."""
    found, truths, sizes = [], [], []
    for record, picture in zip(records, pictures, strict=True):
        refs = [ref for ref in record.expressions if not ref.auto]
        if refs:
            boxes = blip.ground(picture, [ref.text for ref in refs])
            found += [box.edges for box in boxes]
            truths += [ref.box for ref in refs]
            sizes += [picture.size * 2] * len(refs)
    truth, size = np.array(truths), np.array(sizes)
    shares = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    constant = {
        (w, h): _hits(np.array([0.5 - w / 2, 0.5 - h / 2, 0.5 + w / 2, 0.5 + h / 2]) * size, truth)
        for w in shares
        for h in shares
    }
    return {
        "phrases": len(truth),
        "right": _hits(np.array(found), truth),
        "centre half": constant[0.5, 0.5],
        "best centred box": max(constant.values()),
    }


def agreement(
    blip: Blip, plain: Blip, records: Sequence[Record], count: int = 200, texts: int = 20
) -> dict[str, float]:
    """How far ``blip`` keeps to ``plain`` on the first ``count`` captioned pictures, each with ``texts`` captions.

    A text is about the picture itself or about those after it, so hard and easy pairs mix; equal scores keep no order.
    """
    some = [record for record in records if record.captions][:count]
    pictures = [open_image(record.images[0]) for record in some]
    firsts = [record.captions[0] for record in some]
    cosines = (blip.embed_images(pictures) * plain.embed_images(pictures)).sum(1)
    kept: list[float] = []
    for place, picture in enumerate(pictures):
        asked = [firsts[(place + away) % len(firsts)] for away in range(texts)]
        ours, theirs = ([match.probability for match in each.match(picture, asked)] for each in (blip, plain))
        kept += [(a - b) * (c - d) > 0 for (a, c), (b, d) in combinations(zip(ours, theirs, strict=True), 2)]
    return {
        "cosine, mean": round(float(cosines.mean()), 6),
        "cosine, least": round(float(cosines.min()), 6),
        "pairs of texts": len(kept),
        "in the same order": round(100 * sum(kept) / len(kept), 2),
    }


def _hits(boxes: NDArray[Any], truth: NDArray[Any]) -> float:
    low, high = np.maximum(boxes[:, :2], truth[:, :2]), np.minimum(boxes[:, 2:], truth[:, 2:])
    shared = (high - low).clip(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1)
    return round(100 * float((shared >= 0.5 * (area - shared)).mean()), 2)


def _records(folder: Path) -> list[Record]:
    source = open_source(str(folder))
    assert isinstance(source, Source)
    return list(source)


if __name__ == "__main__":
    main()
