"""Measure every figure in the card of `pocket`, from the stored weights.

    python scripts/pocket_figures.py --data DATA

The bundle (`--model`, by default the one in the package) is measured as a user loads it, on `DATA/val` and on the
held-out everyday photos that `scripts/pocket_data.py` listed; none of them was trained on. Figures are printed, and
written to `--out` if it is set. The subjects are those of `recipes/pocket/subjects.yaml`.

    python scripts/pocket_figures.py --data DATA --engine openvino --precision int8

Another engine or precision is measured in the same way, and then compared with PyTorch in fp32: the cosine of the image
embeddings, and the share of text pairs that ITM ranks in the same order.

    python scripts/pocket_figures.py --data DATA --only captions everyday --decoding no_repeat_ngram_size=0 num_beams=5

Captions have the stored defaults, unless `--decoding` overrides options of `Blip.caption`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import openblip
from openblip.blip import Blip
from openblip.checkpoints import read
from openblip.checkpoints.folder import Bundle
from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.evaluation.metrics import captions
from openblip.evaluation.metrics.calibration import area_under_curve
from openblip.evaluation.metrics.subjects import names_subject, subject_words
from openblip.model.build import count_parameters

ROOT = Path(__file__).parents[1]
SUBJECTS = ROOT / "recipes" / "pocket" / "subjects.yaml"
K = 16  # images that ITM re-ranks for each caption
WARM_CALLS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with val/ tars, samples/ and pocket/ lists")
    parser.add_argument("--model", default="pocket", help="bundle to measure")
    parser.add_argument("--engine", default="torch", help="engine to measure")
    parser.add_argument("--precision", default="fp32", help="precision to measure")
    parser.add_argument("--only", nargs="*", default=[], help="names of the figures to measure; by default all")
    parser.add_argument("--decoding", nargs="*", default=[], metavar="OPTION=VALUE", help="options of the captions")
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to")
    options = parser.parse_args()
    blip = openblip.load(options.model, engine=options.engine, precision=options.precision, batch_size=64)
    figures: dict[str, Any] = {}
    decoding = {name: json.loads(value) for name, value in (entry.split("=") for entry in options.decoding)}
    for name, measure in list_measures(options.model, blip, options.data, decoding):
        if not options.only or name in options.only:
            figures[name] = measure()
            print(name, json.dumps(figures[name]), flush=True)
    if (options.engine, options.precision) != ("torch", "fp32"):
        reference = openblip.load(options.model, engine="torch", batch_size=64)
        figures["agreement"] = agreement(blip, reference, read_records(options.data / "val"))
        print("agreement", json.dumps(figures["agreement"]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def list_measures(
    model: str, blip: Blip, data: Path, decoding: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the figures by name, each as a function that measures it."""
    records = read_records(data / "val")
    captioned = [record for record in records if record.captions]
    images = [open_image(record.images[0]) for record in captioned]
    everyday = read_records(data / "pocket" / "everyday_val.jsonl", images=data)
    folders = {"examples": ROOT / "examples" / "photos", "samples": data / "samples"}
    yield "size", lambda: size_figures(model)
    yield "latency", lambda: latency(blip, sorted(folders["examples"].glob("*.jpg"))[0])
    yield "captions", lambda: caption_figures(blip, captioned, decoding)
    yield "everyday", lambda: caption_figures(blip, everyday, decoding)
    yield "subjects", lambda: subject_figures(blip, folders)
    yield "retrieval", lambda: retrieval_figures(blip, captioned, images)
    yield "answers", lambda: answer_figures(blip, records)
    yield "boxes", lambda: box_figures(blip, captioned, images)


def size_figures(model: str) -> dict[str, float]:
    """Return the size of the bundle's files in MB, and the parameters of each model in millions."""
    bundle = Bundle.find(model)
    if bundle is None:
        raise SystemExit(f"{model} must be a bundle")
    paths = {task: Path(path) for task, path in bundle.models.items()}
    files = [file for file in next(iter(paths.values())).parent.rglob("*") if file.is_file()]
    millions = {str(task): round(count_parameters(read.load(path).model) / 1e6, 2) for task, path in paths.items()}
    return {"MB": round(sum(file.stat().st_size for file in files) / 1e6, 2), **millions}


def latency(blip: Blip, photo: Path) -> dict[str, float]:
    """Return the median time of a caption in seconds, on one thread, after a first call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    blip.caption(photo)
    seconds = []
    for _ in range(WARM_CALLS):
        start = time.perf_counter()
        blip.caption(photo)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return {"median": round(statistics.median(seconds), 4), "calls": WARM_CALLS}


def caption_figures(blip: Blip, records: Sequence[Record], decoding: dict[str, Any]) -> dict[str, float]:
    """Score captions, and count how many are distinct, and how many repeat a noun or two consecutive words."""
    texts = {record.address: record.captions for record in records}
    predictions = blip.caption([open_image(record.images[0]) for record in records], **decoding)
    written = {key: caption.text for key, caption in zip(texts, predictions, strict=True)}
    scores = captions.score(written, texts)
    figures = {metric: round(value, 4) for metric, value in scores.corpus.items() if value is not None}
    loops = {
        "repeat a noun": [repeats(subject_words(text)) for text in written.values()],
        "repeat a bigram": [repeats(list(pairwise(text.split()))) for text in written.values()],
    }
    shares = {name: round(100 * sum(found) / len(found), 1) for name, found in loops.items()}
    return {**figures, "photos": len(written), "distinct": len(set(written.values())), **shares}


def repeats(items: Sequence[object]) -> bool:
    """Return whether an item occurs twice."""
    return len(set(items)) < len(items)


def subject_figures(blip: Blip, folders: dict[str, Path]) -> dict[str, Any]:
    """Caption photos and count the captions that name the main subject."""
    words = yaml.safe_load(SUBJECTS.read_text(encoding="utf-8"))
    figures: dict[str, Any] = {}
    for name, folder in folders.items():
        photos = sorted(words[name])
        written = [caption.text for caption in blip.caption([folder / photo for photo in photos])]
        named = [names_subject(text, words[name][photo]) for photo, text in zip(photos, written, strict=True)]
        figures[name] = {"named": sum(named), "photos": len(photos)}
        figures[name]["captions"] = dict(zip(photos, zip(written, named, strict=True), strict=True))
    return figures


def retrieval_figures(blip: Blip, records: Sequence[Record], images: Sequence[Any]) -> dict[str, float]:
    """Measure text-to-image recall: of all captions by ITC, and of the K best by ITC re-ranked by ITM and ITC.

    The AUC of ITM compares the first caption of each image with the first caption of another image.
    """
    encoded = blip.encode_images(list(images), task="retrieval")
    image_embeds = np.concatenate([blip.embed_images([image]) for image in encoded])
    texts = [text for record in records for text in record.captions]
    image_index = np.array([i for i, record in enumerate(records) for _ in record.captions])
    scores = blip.embed_texts(texts) @ image_embeds.T
    figures = {f"itc_r{k}": value for k, value in recall(scores, image_index).items()}
    first = [int(np.flatnonzero(image_index == i)[0]) for i in range(len(records))]  # ITM is slow
    ranked = scores[first].copy()
    own, foreign = [], []
    for row, text_index in enumerate(first):
        best = np.argsort(-ranked[row], kind="stable")[:K]
        pairs = [*best, row, (row + 1) % len(encoded)]
        probabilities = [match.probability for match in blip.match([encoded[i] for i in pairs], texts[text_index])]
        own.append(probabilities[-2])
        foreign.append(probabilities[-1])
        ranked[row, best] += 10 + np.array(probabilities[: len(best)])
    itc, itm = recall(scores[first], image_index[first]), recall(ranked, image_index[first])
    figures |= {f"first_itc_r{k}": value for k, value in itc.items()}
    figures |= {f"first_itm_r{k}": value for k, value in itm.items()}
    return {**figures, "itm_auc": round(area_under_curve(own, foreign), 4)}


def recall(scores: NDArray[Any], image_index: NDArray[Any]) -> dict[int, float]:
    """Return the percentage of texts whose image is among the k best, for three k."""
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
        if not pairs:
            continue
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
        (w, h): share_correct(np.array([0.5 - w / 2, 0.5 - h / 2, 0.5 + w / 2, 0.5 + h / 2]) * size, truth)
        for w in shares
        for h in shares
    }
    return {
        "phrases": len(truth),
        "correct": share_correct(np.array(predicted), truth),
        "best centered box": max(constant.values()),
    }


def share_correct(boxes: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the percentage of boxes with an IoU of 0.5 or more."""
    low, high = np.maximum(boxes[:, :2], truth[:, :2]), np.minimum(boxes[:, 2:], truth[:, 2:])
    intersection = (high - low).clip(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1)
    return round(100 * float((intersection >= 0.5 * (area - intersection)).mean()), 2)


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


def read_records(path: Path, images: Path | None = None) -> list[Record]:
    """Return the records of one source, whose relative image paths start in `images`."""
    source = open_source(str(path), images=None if images is None else str(images))
    assert isinstance(source, Source)
    return list(source)


if __name__ == "__main__":
    main()
