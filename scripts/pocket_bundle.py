"""Store the trained models of `pocket` in a bundle, in half precision, and measure the bundle.

    python scripts/pocket_bundle.py --runs runs/pocket --data DATA --out runs/pocket/bundle

The bundle is measured as a user loads it, on `DATA/val`, which was not trained on: captions (BLEU, CIDEr), retrieval
among the captioned images by ITC and re-ranked by ITM, answers compared with the most common answer, and boxes compared
with the best constant box. Results are printed and written to `OUT/../figures.json`.

    python scripts/pocket_bundle.py --data DATA --engine openvino --precision int8

Another engine or precision is measured in the same way, and then compared with PyTorch in fp32: the cosine of the image
embeddings, and the share of text pairs that ITM ranks in the same order.
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
K = 16  # images that ITM re-ranks for each caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/pocket"), help="folder of the runs of recipes/pocket")
    parser.add_argument("--data", type=Path, required=True, help="folder with val/ tars")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/bundle"), help="folder of the bundle")
    parser.add_argument("--engine", default="torch", help="engine to measure")
    parser.add_argument("--precision", default="fp32", help="precision to measure")
    options = parser.parse_args()
    if not (options.out / bundle.FILE).exists():
        store(options.runs, options.out)
    blip = openblip.load(options.out, engine=options.engine, precision=options.precision, batch_size=64)
    figures: dict[str, Any] = {}
    for name, result in measure(blip, _records(options.data / "val")):
        figures[name] = result
        print(name, json.dumps(result), flush=True)
    if (options.engine, options.precision) != ("torch", "fp32"):
        reference = openblip.load(options.out, engine="torch", batch_size=64)
        result = agreement(blip, reference, _records(options.data / "val"))
        figures["compared with fp32"] = result
        print("compared with fp32", json.dumps(result), flush=True)
    name = "figures.json" if options.precision == "fp32" else f"figures-{options.engine}-{options.precision}.json"
    (options.out.parent / name).write_text(json.dumps(figures, indent=2) + "\n")


def store(runs: Path, out: Path) -> None:
    """Write the trained models as hub folders in half precision, and the bundle."""
    models: dict[TaskName, Path] = {}
    for task, run in MEMBERS.items():
        if (folder := runs / run / "model").is_dir():
            loaded = read.load(folder)
            write.save(loaded, out / task, dtype=torch.float16)
            models[task] = out / task
    bundle.write(out, models)


def measure(blip: Blip, records: list[Record]) -> Iterator[tuple[str, Any]]:
    """Yield figures by name."""
    captioned = [record for record in records if record.captions]
    images = [open_image(record.images[0]) for record in captioned]
    yield "captions", caption_figures(blip, captioned, images)
    if "retrieval" in blip.tasks:
        yield "retrieval", retrieval_figures(blip, captioned, images)
    if "vqa" in blip.tasks:
        yield "answers", answer_figures(blip, records)
    if "grounding" in blip.tasks:
        yield "boxes", box_figures(blip, captioned, images)


def caption_figures(blip: Blip, records: Sequence[Record], images: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Score captions as the paper decodes, and without length normalization, which suits a small model."""
    texts = {record.address: record.captions for record in records}
    figures = {}
    for name, decoding in DECODINGS.items():
        predictions = blip.caption(list(images), max_new_tokens=20, **decoding)
        scores = captions.score({key: caption.text for key, caption in zip(texts, predictions, strict=True)}, texts)
        figures[name] = {metric: round(value, 4) for metric, value in scores.corpus.items() if value is not None}
    return figures


def retrieval_figures(blip: Blip, records: Sequence[Record], images: Sequence[Any]) -> dict[str, float]:
    """Measure text-to-image recall: of all captions by ITC, and of the K best by ITC re-ranked by ITM and ITC."""
    image_embeds = blip.embed_images(list(images))
    texts = [text for record in records for text in record.captions]
    image_index = np.array([i for i, record in enumerate(records) for _ in record.captions])
    scores = blip.embed_texts(texts) @ image_embeds.T
    figures = {f"itc_r{k}": value for k, value in _recall(scores, image_index).items()}
    subset = range(0, len(texts), 5)  # one caption per image, because ITM is slow
    encoded = blip.encode_images(list(images), task="retrieval")
    ranked = scores[list(subset)].copy()
    for row, text_index in enumerate(subset):
        best = np.argsort(-ranked[row], kind="stable")[:K]
        matches = blip.match([encoded[image] for image in best], texts[text_index])
        ranked[row, best] += 10 + np.array([match.probability for match in matches])
    itc = _recall(scores[list(subset)], image_index[list(subset)])
    itm = _recall(ranked, image_index[list(subset)])
    figures |= {f"first_itc_r{k}": value for k, value in itc.items()}
    return figures | {f"first_itm_r{k}": value for k, value in itm.items()}


def _recall(scores: NDArray[Any], image_index: NDArray[Any]) -> dict[int, float]:
    rank = (scores > scores[np.arange(len(scores)), image_index][:, None]).sum(1)
    return {k: round(100 * float((rank < k).mean()), 2) for k in (1, 5, 10)}


def answer_figures(blip: Blip, records: Sequence[Record]) -> dict[str, Any]:
    """Measure exact answers and the most common answer, separately for questions by people and by rules."""
    figures: dict[str, Any] = {}
    rows: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for record in records:
        if record.questions:
            image = open_image(record.images[0])
            answers = blip.ask(image, [question.text for question in record.questions], num_beams=1)
            for question, answer in zip(record.questions, answers, strict=True):
                rows[question.auto].append((answer.text, question.answers[0]))
    for auto, pairs in rows.items():
        most_common = Counter(truth for _, truth in pairs).most_common(1)[0][1]
        figures["made by rule" if auto else "by people"] = {
            "questions": len(pairs),
            "correct": round(100 * sum(a == b for a, b in pairs) / len(pairs), 2),
            "most common": round(100 * most_common / len(pairs), 2),
        }
    return figures


def box_figures(blip: Blip, records: Sequence[Record], images: Sequence[Any]) -> dict[str, float]:
    """Measure the share of phrases whose box has an IoU of 0.5 or more, and the same for constant boxes."""
    predicted, truths, sizes = [], [], []
    for record, image in zip(records, images, strict=True):
        expressions = [expression for expression in record.expressions if not expression.auto]
        if expressions:
            boxes = blip.ground(image, [expression.text for expression in expressions])
            predicted += [box.edges for box in boxes]
            truths += [expression.box for expression in expressions]
            sizes += [image.size * 2] * len(expressions)
    truth, size = np.array(truths), np.array(sizes)
    shares = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    constant = {
        (w, h): _share_correct(np.array([0.5 - w / 2, 0.5 - h / 2, 0.5 + w / 2, 0.5 + h / 2]) * size, truth)
        for w in shares
        for h in shares
    }
    return {
        "phrases": len(truth),
        "correct": _share_correct(np.array(predicted), truth),
        "center half": constant[0.5, 0.5],
        "best centered box": max(constant.values()),
    }


def agreement(
    blip: Blip, reference: Blip, records: Sequence[Record], count: int = 200, texts: int = 20
) -> dict[str, float]:
    """Compare `blip` with `reference` on the first `count` captioned images, each with `texts` captions.

    The captions are of the image and of the images after it, which mixes easy and hard pairs. Equal scores do not count
    as the same order.
    """
    subset = [record for record in records if record.captions][:count]
    images = [open_image(record.images[0]) for record in subset]
    captions_of_images = [record.captions[0] for record in subset]
    cosines = (blip.embed_images(images) * reference.embed_images(images)).sum(1)
    same_order: list[bool] = []
    for index, image in enumerate(images):
        candidates = [captions_of_images[(index + offset) % len(images)] for offset in range(texts)]
        ours, theirs = ([match.probability for match in model.match(image, candidates)] for model in (blip, reference))
        same_order += [(a - b) * (c - d) > 0 for (a, c), (b, d) in combinations(zip(ours, theirs, strict=True), 2)]
    return {
        "cosine, mean": round(float(cosines.mean()), 6),
        "cosine, smallest": round(float(cosines.min()), 6),
        "pairs of texts": len(same_order),
        "in the same order": round(100 * sum(same_order) / len(same_order), 2),
    }


def _share_correct(boxes: NDArray[Any], truth: NDArray[Any]) -> float:
    low, high = np.maximum(boxes[:, :2], truth[:, :2]), np.minimum(boxes[:, 2:], truth[:, 2:])
    intersection = (high - low).clip(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1)
    return round(100 * float((intersection >= 0.5 * (area - intersection)).mean()), 2)


def _records(folder: Path) -> list[Record]:
    source = open_source(str(folder))
    assert isinstance(source, Source)
    return list(source)


if __name__ == "__main__":
    main()
