"""Prove CapFilt on photos with known noise: precision and recall of the filter, and four rows of the paper's Table 1.

    python scripts/capfilt_proof.py --list DATA/pocket/captioned.jsonl --data DATA --val DATA/val/flickr8k-000.tar \\
        --start DATA/pocket/start --views DATA/pocket/views --out runs/capfilt-proof \\
        --results benchmarks/results/capfilt_proof.json

The photos of the list are divided by a hash of their names: a clean part with all captions, a validation part, and a
"web" part with one text per photo, of which a known share is wrong (another photo's caption, replaced words, or
boilerplate). Captioner and filter see the clean part and the noisy texts only. All models start from `--start`, whose
image encoder saw no captions. New models are then trained for the same number of steps with three seeds, on one human
caption of each clean photo and one of six web parts: noisy, filtered, captioned, or both, where filters use the paper's
threshold of 0.5; and filtered or both, where they use a threshold chosen on the validation part.

A stopped run resumes. Every finished model adds its scores to `--results`, and the table is printed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from openblip.capfilt import rows as stored
from openblip.capfilt.folder import CapFiltFolder
from openblip.capfilt.rules import Rule
from openblip.capfilt.run import CapFiltJob, ModelOptions
from openblip.capfilt.run import run as run_capfilt
from openblip.capfilt.scoring import Sampling
from openblip.checkpoints.folder import MODEL
from openblip.data.augment import Transform
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.tasks.caption import CaptionData
from openblip.data.views import ViewCache
from openblip.io import atomic, jsonlines
from openblip.model.captioner import Captioner
from openblip.training.cider import measure_cider
from openblip.training.config import recipe_from_table
from openblip.training.data import build_data
from openblip.training.initial import build_initial_state
from openblip.training.reporters import read_log
from openblip.training.run import LOG
from openblip.training.run import run as train

ROWS = ("noisy", "filtered", "captioned", "both", "filtered_val", "both_val")  # _val: with the chosen threshold
BOILERPLATE = (
    "click here for more photos",
    "photo {n} of 50",
    "free download hd wallpaper",
    "img {n} jpg",
    "image may contain",
)
METRICS = ("t2i_r1", "t2i_r10", "i2t_r1", "i2t_r10", "r_mean", "cider")


@dataclass(frozen=True)
class Sizes:
    """How much is trained.

    Attributes:
        clean: Photos with human captions.
        tuning: Photos on which the threshold is chosen.
        web: Photos with one text each; 0 takes the rest.
        noise: Share of the web texts that are wrong.
        steps: Steps of the first model, and of each model of the table.
        tune_steps: Steps of captioner and filter.
        batch: Photos per step.
        captions: Validation photos to caption.
        seeds: Seeds of each row.
    """

    clean: int = 2000
    tuning: int = 300
    web: int = 0
    noise: float = 0.5
    steps: int = 300
    tune_steps: int = 600
    batch: int = 48
    captions: int = 300
    seeds: int = 3


@dataclass(frozen=True)
class Photo:
    """A photo with its true captions."""

    image: str
    captions: tuple[str, ...]


class Proof:
    """All steps of the proof.

    Args:
        options: The options of the command line.
        sizes: How much is trained.
    """

    def __init__(self, options: argparse.Namespace, sizes: Sizes) -> None:
        self.options, self.sizes = options, sizes
        self.out: Path = options.out
        self.results: dict[str, Any] = {"sizes": vars(sizes), "models": {}}
        if options.results.exists():
            self.results = json.loads(options.results.read_text(encoding="utf-8"))
            if self.results["sizes"] != vars(sizes):
                raise SystemExit(f"{options.results} has other sizes: {self.results['sizes']}")

    def run(self) -> None:
        """Run every step that is not done."""
        photos = read_photos(self.options.list, self.options.prefix)
        clean, val, web = split(photos, self.sizes)
        texts, right = add_noise(web, self.sizes.noise)
        val_texts, _ = add_noise(val, 1.0, "val")
        human = [(photo.image, text) for photo in clean for text in photo.captions]
        noisy = [(photo.image, text) for photo, text in zip(web, texts, strict=True)]
        print(f"{len(clean)} clean photos, {len(val)} for the threshold, {len(web)} web photos")
        self.train("first", "pretrain", [*human, *noisy], self.sizes.steps, seed=0)
        first = self.out / "first" / MODEL
        self.train("captioner", "caption", human, self.sizes.tune_steps, seed=0, start=first)
        self.train("filter", "retrieval", human, self.sizes.tune_steps, seed=0, start=first)
        found = self.filter("web", [(photo.image, [text]) for photo, text in zip(web, texts, strict=True)])
        on_val = self.filter("val", [(p.image, [p.captions[0], t]) for p, t in zip(val, val_texts, strict=True)])
        threshold = self.measure_filter(found, on_val, dict(zip([p.image for p in web], right, strict=True)))
        one_each = [(photo.image, photo.captions[0]) for photo in clean]
        for row in ROWS:
            rule = Rule("itm", threshold) if row.endswith("_val") else Rule()
            pairs = [*one_each, *choose_texts(found, row.removesuffix("_val"), rule)]
            for seed in range(self.sizes.seeds):
                self.train(f"{row}-{seed}", "pretrain", pairs, self.sizes.steps, seed=seed + 1, measure=True)
        self.save()
        print(format_table(self.results))

    def train(
        self,
        name: str,
        task: str,
        pairs: Sequence[tuple[str, str]],
        steps: int,
        *,
        seed: int,
        start: Path | None = None,
        measure: bool = False,
    ) -> None:
        """Train one model on pairs drawn at random, for a number of steps; and measure it."""
        folder = self.out / name
        if (folder / "done").exists():
            return
        # The same images in the same order for a seed would need equal sets; so the draws are made here, once.
        drawn = draw(pairs, steps * self.sizes.batch, random.Random(f"{seed}/{name.partition('-')[0]}"))
        listing = self.out / f"{name}.jsonl"
        atomic.write_bytes(listing, b"".join(jsonlines.encode({"image": i, "captions": [t]}) for i, t in drawn))
        recipe = recipe_from_table(self.recipe(task, listing, folder, seed, start, measure))
        started = time.process_time()
        train(recipe, resume=True)
        print(f"{name}: {steps} steps, {time.process_time() - started:.0f} s of one core", flush=True)
        if measure:
            scores: dict[str, Any] = {}
            for record in read_log(folder / LOG):
                scores |= {k: v for k, v in flatten(record).items() if k in METRICS}
            scores["cider"] = self.measure_captions(folder / MODEL)
            scores["texts"] = len(pairs)
            self.results["models"][name] = scores
            self.save()
            print(name, {key: round(float(value), 3) for key, value in scores.items()}, flush=True)
        (folder / "done").touch()

    def recipe(
        self, task: str, listing: Path, folder: Path, seed: int, start: Path | None, measure: bool
    ) -> dict[str, Any]:
        """Return the settings of one training run."""
        options = self.options
        data: dict[str, Any] = {
            "train": [str(listing)],
            "images": str(options.data),
            "max_tokens": 24,
            "num_workers": 0,
        }
        if options.views is not None:
            data |= {"views": str(options.views), "view_count": options.view_count}
        if task == "caption":
            data["prompt"] = ""
        loss: dict[str, Any] = {} if task == "caption" else {"queue_size": 20 * self.sizes.batch, "momentum": 0.99}
        if task == "retrieval":
            loss["negatives"] = "rank"
        if measure:
            data["val"] = [str(options.val)]
        return {
            "task": task,
            "start": [str(start or options.start)],
            "out": str(folder),
            "seed": seed,
            "epochs": 1,
            "batch_size": self.sizes.batch,
            "model": {"freeze": ["vision.stem"]} if options.views is not None else {},
            "data": data,
            "loss": loss,
            "optimizer": {"groups": "lavis", "beta2": 0.98, "clip_norm": 1.0},
            "schedule": {
                "kind": "cosine_per_step",
                "lr": 1e-3 if task == "pretrain" else 3e-4,
                "min_lr": 1e-6,
                "warmup_steps": max(1, self.sizes.steps // 10),
            },
            "evaluate": {"every_epochs": 1 if measure else 0, "num_samples": 0},
            "run": {
                "device": "cpu",
                "matmul_precision": "medium",  # bf16 products, where the processor has them
                "charts": False,
                "save_every": 50,
                "keep_checkpoints": 1,
                "log_every": 20,
            },
        }

    def filter(self, name: str, photos: Sequence[tuple[str, Sequence[str]]]) -> list[stored.Row]:
        """Caption and score photos with `openblip capfilt`."""
        out, listing = self.out / f"capfilt-{name}", self.out / f"{name}.jsonl"
        content = [jsonlines.encode({"image": image, "captions": list(texts)}) for image, texts in photos]
        atomic.write_bytes(listing, b"".join(content))
        models = ModelOptions(
            str(self.out / "captioner" / MODEL),
            str(self.out / "filter" / MODEL),
            "cpu",
            self.options.engine,
            "fp32",
            16,
            1,
        )
        job = CapFiltJob(str(out), models, Sampling(prompt="", min_new_tokens=4, max_new_tokens=20))
        run_capfilt([str(listing)], job, images=str(self.options.data), shard_rows=200)
        folder = CapFiltFolder(out)
        return [row for shard in folder.shards() for row in stored.to_rows(stored.read_table(folder.rows_path(shard)))]

    def measure_filter(self, web: Sequence[stored.Row], val: Sequence[stored.Row], right: Mapping[str, bool]) -> float:
        """Report how the filter judges texts of known quality, at 0.5 and at a threshold chosen on other photos."""
        labels = np.array([right[row.key] for row in web])
        scores = np.array([row.texts[0].itm for row in web], float)
        val_scores = np.array([[text.itm for text in row.texts[:2]] for row in val], float)
        threshold = choose_threshold(val_scores.T.ravel(), np.repeat([True, False], len(val_scores)))
        self.results["filter"] = {
            "texts": len(labels),
            "noise": float(1 - labels.mean()),
            "auc": measure_auc(scores, labels),
            "auc_itc": measure_auc(np.array([row.texts[0].itc for row in web], float), labels),
            "paper": measure_threshold(scores, labels, 0.5),
            "chosen": measure_threshold(scores, labels, threshold),
            "synthetic_kept": float(np.mean([row.texts[1].itm >= 0.5 for row in web])),  # type: ignore[operator]
        }
        self.save()
        print(json.dumps(self.results["filter"], indent=1), flush=True)
        return threshold

    def measure_captions(self, model: Path) -> float:
        """Return the CIDEr of a model's captions of validation photos."""
        if not self.sizes.captions:
            return 0.0
        recipe = recipe_from_table(self.recipe("caption", self.options.val, self.out / "unused", 0, model, False))
        initial = build_initial_state(recipe)
        source = cast(Source, open_source(str(self.options.val)))
        records = [source[index] for index in range(min(self.sizes.captions, len(source)))]
        data = cast(CaptionData, build_data(recipe, initial.tokenizer, initial.image, "", train=False))
        captioner = cast(Captioner, initial.model.eval())
        transform: Transform | ViewCache = data.transform
        device = torch.device("cpu")
        return measure_cider(captioner, initial.tokenizer, records, transform, initial.image, "", device)

    def save(self) -> None:
        """Write the results."""
        atomic.write_json(self.options.results, self.results)


def read_photos(path: Path, prefix: str) -> list[Photo]:
    """Return the photos of a list whose names begin with a prefix, in the order of a hash of their names."""
    photos = [Photo(str(row["image"]), tuple(row["captions"])) for row in jsonlines.read(path)]
    chosen = [photo for photo in photos if photo.image.startswith(prefix) and photo.captions]
    return sorted(chosen, key=lambda photo: hashlib.sha256(photo.image.encode()).hexdigest())


def split(photos: Sequence[Photo], sizes: Sizes) -> tuple[list[Photo], list[Photo], list[Photo]]:
    """Return the clean part, the part for the threshold, and the web part."""
    clean, val = photos[: sizes.clean], photos[sizes.clean : sizes.clean + sizes.tuning]
    web = photos[sizes.clean + sizes.tuning :]
    return list(clean), list(val), list(web[: sizes.web or None])


def add_noise(photos: Sequence[Photo], share: float, seed: str = "web") -> tuple[list[str], list[bool]]:
    """Return a text for each photo, and whether it is a true caption.

    Of the wrong texts, three in five are a caption of another photo, one has most of its words replaced, and one is
    boilerplate.
    """
    rng = random.Random(seed)
    words = [word for photo in photos for caption in photo.captions for word in caption.split()]
    texts, right = [], []
    for number, photo in enumerate(photos):
        text = rng.choice(photo.captions)
        wrong = rng.random() < share
        if wrong:
            kind = rng.choice(("swap", "swap", "swap", "words", "boilerplate"))
            other = photos[(number + rng.randrange(1, len(photos))) % len(photos)]
            if kind == "swap":
                text = rng.choice(other.captions)
            elif kind == "words":
                text = " ".join(rng.choice(words) if rng.random() < 0.7 else word for word in text.split())
            else:
                text = rng.choice(BOILERPLATE).format(n=rng.randrange(1, 9999))
        texts.append(text)
        right.append(not wrong)
    return texts, right


def choose_texts(found: Sequence[stored.Row], row: str, rule: Rule) -> list[tuple[str, str]]:
    """Return the web part of a row of the table: web texts, synthetic ones, or those that the rule keeps."""
    pairs = []
    for image in found:
        for text in image.texts:
            keep = text.itm is not None and rule.accepts(np.array([text.itm]), np.array([text.itc]))[0]
            usable = text.reason is None
            if (
                (text.source == "web" or row in ("captioned", "both"))
                and usable
                and (keep or row in ("noisy", "captioned"))
            ):
                pairs.append((image.key, text.text))
    return pairs


def draw(pairs: Sequence[tuple[str, str]], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Return `count` pairs: all of them in random order, again and again."""
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        drawn += rng.sample(pairs, len(pairs))
    return drawn[:count]


def measure_threshold(scores: NDArray[np.floating], labels: NDArray[np.bool_], threshold: float) -> dict[str, float]:
    """Return precision and recall of keeping the texts whose score reaches a threshold."""
    kept = scores >= threshold
    right = float((kept & labels).sum())
    return {
        "threshold": threshold,
        "precision": right / max(1, int(kept.sum())),
        "recall": right / max(1, int(labels.sum())),
        "kept": float(kept.mean()),
    }


def choose_threshold(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1."""

    def f1(threshold: float) -> float:
        measured = measure_threshold(scores, labels, threshold)
        total = measured["precision"] + measured["recall"]
        return 2 * measured["precision"] * measured["recall"] / total if total else 0.0

    return float(max(np.unique(scores), key=f1))


def measure_auc(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: the probability that a right text has a higher score than a wrong one."""
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    for value in np.unique(scores):  # equal scores share a rank
        ranks[scores == value] = ranks[scores == value].mean()
    right, wrong = int(labels.sum()), int((~labels).sum())
    return float((ranks[labels].sum() - right * (right + 1) / 2) / (right * wrong))


def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a record of a log, those of nested tables included."""
    values: dict[str, Any] = {}
    for name, value in record.items():
        values |= flatten(value) if isinstance(value, Mapping) else {name: value}
    return values


def format_table(results: Mapping[str, Any]) -> str:
    """Return mean and spread (standard deviation) of each row as a Markdown table."""
    lines = ["| trained on | " + " | ".join(METRICS) + " |", "|---|" + "---:|" * len(METRICS)]
    for row in ROWS:
        models = [scores for name, scores in results["models"].items() if name.partition("-")[0] == row]
        cells = []
        for metric in METRICS:
            values = [float(scores[metric]) for scores in models if metric in scores]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "-")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, required=True, help="photos with captions, JSON Lines")
    parser.add_argument("--prefix", default="train/flickr8k", help="start of the names of the photos to use")
    parser.add_argument("--data", type=Path, required=True, help="folder that the names in the list are relative to")
    parser.add_argument("--val", type=Path, required=True, help="photos with captions to measure the models on")
    parser.add_argument("--start", type=Path, required=True, help="model whose image encoder saw no captions")
    parser.add_argument("--views", type=Path, help="cached features of its stem (scripts/pocket_views.py)")
    parser.add_argument("--view-count", type=int, default=2, help="views of each photo to train on")
    parser.add_argument("--engine", default="torch", help="engine of capfilt: torch or openvino")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and scores; a stopped run resumes")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for the results")
    for name, value in vars(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args(arguments)
    sizes = replace(Sizes(), **{name: getattr(options, name) for name in vars(Sizes())})
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    Proof(options, sizes).run()


if __name__ == "__main__":
    main()
