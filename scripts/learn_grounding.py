"""Measure whether a small grounding model learns to find what expressions name, from a pretrained model.

    python scripts/learn_grounding.py --data DATA --start runs/pocket/boxes --seeds 3

DATA holds `train/*.tar` and `val/*.tar` of images with boxes. The run uses the recipe of `pocket`. Expressions that
people marked in the validation images are then looked up with `Blip.ground`, with boxes read as the recipe says
(medians) and as published (the likeliest bins). Two constant boxes give a baseline: one in the center with the usual
sides, and the one that fits most training boxes, found by search. A box counts with an IoU of 0.5 or more.

`--out` keeps the runs and resumes an interrupted one. Several seeds in parallel, one thread each, take less time than
one after the other with as many threads:

    for seed in 0 1 2; do python scripts/learn_grounding.py ... --first-seed $seed --seeds 1 --threads 1 & done
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

import openblip
from openblip.checkpoints import read, write
from openblip.data.images import open_image
from openblip.data.records import Expression, Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.evaluation.metrics.boxes import iou
from openblip.model.grounder import Grounder
from openblip.preprocess.text import clean_expression
from openblip.training.config import EvaluateSettings, Recipe, RunSettings, read_recipe
from openblip.training.reporters import LogRecord, Reporter
from openblip.training.run import run

RECIPE = Path(__file__).parents[1] / "recipes" / "pocket" / "grounding.yaml"
IOU_THRESHOLD = 0.5
Boxes = NDArray[np.float64]  # (N, 4): left, top, right, bottom in shares of the image


def main() -> None:
    """Train and measure with each seed, and print a line of JSON per seed."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    train_boxes = relative_boxes(read_records(options.data / options.train))
    val_records = read_records(options.data / options.val)
    val_boxes = relative_boxes(val_records)
    baselines: dict[str, float] = {"expressions": len(val_boxes)}
    boxes = {"center box": center_box(train_boxes), "best constant box": best_constant(train_boxes)}
    for name, box in boxes.items():
        baselines[name] = float((box_iou(val_boxes, box) >= IOU_THRESHOLD).mean())
        print(f"{name} {[round(float(edge), 3) for edge in box]}: {baselines[name]:.4f}", flush=True)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        start = time.process_time(), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            out = (options.out or Path(folder)) / f"seed-{seed}"
            recipe = build_recipe(options, seed, out)
            model = run(recipe, resume=True, notify=print, reporters=[LossPrinter()]).model
            accuracy, mean_iou = measure(model, val_records)
            likeliest, _ = measure(read_as_published(model, Path(folder) / "published"), val_records)
        result = {"seed": seed, "accuracy": accuracy, "mean IoU": mean_iou, "accuracy of the likeliest": likeliest}
        seconds = {
            "processor seconds": round(time.process_time() - start[0]),
            "seconds": round(time.perf_counter() - start[1]),
        }
        print(json.dumps({**result, **baselines, **seconds}), flush=True)


class LossPrinter(Reporter):
    """Prints the loss."""

    def on_losses(self, record: LogRecord) -> None:
        print(f"step {record['step']} loss {record['loss']:.3f}, {record['eta_seconds']:.0f} s left", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/ tars")
    parser.add_argument("--start", required=True, help="pretrained model to start from")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="first seed")
    parser.add_argument("--epochs", type=int, help="epochs, if not the recipe's")
    parser.add_argument("--out", type=Path, help="folder to keep the runs in")
    parser.add_argument("--train", default="train/*.tar", help="training tars below DATA")
    parser.add_argument("--val", default="val/*.tar", help="validation tars below DATA")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--fp32", action="store_true", help="train in fp32, for processors without fast bf16")
    return parser.parse_args()


def build_recipe(options: argparse.Namespace, seed: int, out: Path) -> Recipe:
    """Return the recipe of `pocket` for these data, without evaluations, which change no weight."""
    recipe = read_recipe(RECIPE)
    data = replace(recipe.data, train=(str(options.data / options.train),), val=(), num_workers=0)
    return replace(
        recipe,
        start=(options.start,),
        out=str(out),
        seed=seed,
        epochs=options.epochs or recipe.epochs,
        data=data,
        run=RunSettings(device="cpu", precision="fp32" if options.fp32 else "bf16", charts=False, log_every=50),
        evaluate=EvaluateSettings(every_epochs=0, num_samples=0),
    )


def measure(model: Path, records: Sequence[Record]) -> tuple[float, float]:
    """Return the share of boxes that are found, and the mean IoU, over the marked expressions."""
    blip = openblip.load(model)
    ious = []
    for record in records:
        expressions = marked_expressions(record)
        boxes = blip.ground(open_image(record.images[0]), [expression.text for expression in expressions])
        for box, expression in zip(boxes, expressions, strict=True):
            ious.append(iou((box.left, box.top, box.right, box.bottom), expression.box))
    return float(np.mean(np.array(ious) >= IOU_THRESHOLD)), float(np.mean(ious))


def read_as_published(model: Path, out: Path) -> Path:
    """Write a copy of a model that reads the likeliest bins rather than medians."""
    loaded = read.load(model)
    grounder = cast(Grounder, loaded.model)
    grounder.config = replace(grounder.config, box_reading="likeliest")
    return write.save(loaded, out)


def best_constant(boxes: Boxes) -> Boxes:
    """Return the box that has an IoU of 0.5 or more with most of `boxes`.

    The search starts with a grid of centers and sides, then moves and stretches the best box while that helps.
    """
    subset = boxes[:: max(1, len(boxes) // 4000)]
    centers, sides = np.linspace(0.2, 0.8, 7), np.linspace(0.15, 1.0, 8)
    grid = np.stack(np.meshgrid(centers, centers, sides, sides, indexing="ij"), -1).reshape(-1, 4)
    best = max(grid, key=lambda centered: share_found(subset, centered))
    step = 0.05
    while step > 0.004:
        neighbors = [best + step * move for move in np.vstack([np.zeros(4), np.eye(4), -np.eye(4)])]
        neighbor = max(neighbors, key=lambda centered: share_found(boxes, centered))
        if share_found(boxes, neighbor) > share_found(boxes, best):
            best = neighbor
        else:
            step /= 2
    return to_corners(best)


def center_box(boxes: Boxes) -> Boxes:
    """Return the box in the center of the image with the median sides."""
    return to_corners(np.concatenate([[0.5, 0.5], np.median(boxes[:, 2:] - boxes[:, :2], axis=0)]))


def share_found(boxes: Boxes, centered: NDArray[np.float64]) -> float:
    """Return the share of boxes that a box (center and sides) matches."""
    return float((box_iou(boxes, to_corners(centered)) >= IOU_THRESHOLD).mean())


def box_iou(boxes: Boxes, box: Boxes) -> NDArray[np.float64]:
    """Return the IoU (N,) of boxes with a single box."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    intersection = sides.clip(min=0).prod(1)
    return intersection / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - intersection)


def to_corners(centered: NDArray[np.float64]) -> Boxes:
    """Convert center and sides to left, top, right and bottom, within the image."""
    return np.concatenate([centered[:2] - centered[2:] / 2, centered[:2] + centered[2:] / 2]).clip(0, 1)


def read_records(address: Path) -> list[Record]:
    """Return the records with marked expressions."""
    source = open_source(str(address))
    assert isinstance(source, Source)
    return [record for record in source if marked_expressions(record)]


def marked_expressions(record: Record) -> list[Expression]:
    """Return the expressions that people marked, without those derived by a rule or without words."""
    return [
        expression for expression in record.expressions if not expression.auto and clean_expression(expression.text)
    ]


def relative_boxes(records: Sequence[Record]) -> Boxes:
    """Return all boxes in shares of their images."""
    rows = []
    for record in records:
        width, height = open_image(record.images[0]).size
        for expression in marked_expressions(record):
            x0, y0, x1, y1 = expression.box
            rows.append([x0 / width, y0 / height, x1 / width, y1 / height])
    return np.array(rows)


if __name__ == "__main__":
    main()
