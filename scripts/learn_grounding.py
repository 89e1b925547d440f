"""Does the grounding model learn to find what expressions name? Small, on little data, from a pretrained model.

    python scripts/learn_grounding.py --data DATA --start runs/pocket/boxes --seeds 3

DATA holds ``train/*.tar`` and ``val/*.tar`` of pictures with boxes. The training loop is the real one, by the recipe of
``pocket``; pictures are mirrored half of the time, with "left" and "right" exchanged. What people marked in the
pictures of ``val`` is then looked for through ``Blip.ground``, reading boxes as the recipe says (medians) and as
published (the likeliest numbers). The share of boxes with an IoU of 0.5 or more stands beside what two boxes get that
see no picture: one in the centre with the usual sides, and the one that fits most boxes of ``train``, found by search.

With ``--out`` the runs are kept, and one that was broken off goes on. Several seeds at once, one thread each, take less
time than one after the other on as many threads:

    for seed in 0 1 2; do python scripts/learn_grounding.py ... --first-seed $seed --seeds 1 --threads 1 & done
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from openblip.training.config import Recipe, recipe_from_table
from openblip.training.config.parsing import read_table
from openblip.training.reporters import LogRecord as LogRecord
from openblip.training.reporters import Reporter
from openblip.training.run import run

RECIPE = Path(__file__).parents[1] / "recipes" / "pocket" / "grounding.yaml"
HIT = 0.5  # IoU
Boxes = NDArray[np.float64]  # (N, 4): left, top, right, bottom in shares of the picture


def main() -> None:
    """Train and measure for each seed, and print what came of it."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    seen, asked = _shares(_records(options.data / options.train)), _records(options.data / options.val)
    best, usual = best_constant(seen), _centred(seen)
    right = _shares(asked)
    figures: dict[str, float] = {"expressions": len(right)}
    for name, box in (("centre box", usual), ("best constant box", best)):
        figures[name] = float((overlaps(right, box) >= HIT).mean())
        print(f"{name} {[round(float(edge), 3) for edge in box]}: {figures[name]:.4f}", flush=True)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        began = time.process_time(), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            place = (options.out or Path(folder)) / f"seed-{seed}"
            model = run(recipe(options, seed, place), resume=True, notify=print, reporters=[Said()]).model
            accuracy, mean = measure(model, asked)
            published, _ = measure(read_as_published(model, Path(folder) / "published"), asked)
        told: dict[str, float] = {"seed": seed, "accuracy": accuracy, "mean IoU": mean}
        told |= {"accuracy of the likeliest": published, **figures}
        told |= {"processor seconds": round(time.process_time() - began[0])}
        told |= {"seconds": round(time.perf_counter() - began[1])}
        print(json.dumps(told), flush=True)


class Said(Reporter):
    """Prints the loss."""

    def train(self, record: LogRecord) -> None:
        print(f"step {record['step']} loss {record['loss']:.3f}, {record['eta_seconds']:.0f} s to go", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/ tars")
    parser.add_argument("--start", required=True, help="the model to start from: a pretrained one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="others than the recipe's")
    parser.add_argument("--out", type=Path, help="where the runs are kept, seed by seed; nowhere by default")
    parser.add_argument("--train", default="train/*.tar", help="below DATA")
    parser.add_argument("--val", default="val/*.tar", help="below DATA")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fp32", action="store_true", help="where the processor does not multiply bf16 fast")
    return parser.parse_args()


def recipe(options: argparse.Namespace, seed: int, out: Path) -> Recipe:
    """The recipe of ``pocket`` on these data; nothing is evaluated or drawn on the way, which changes no weight."""
    table = read_table(RECIPE)
    table |= {"start": options.start, "out": str(out), "seed": seed, "epochs": options.epochs or table["epochs"]}
    table["data"] = {**table["data"], "train": str(options.data / options.train), "workers": 0}
    del table["data"]["val"]
    table["run"] = {"device": "cpu", "precision": "fp32" if options.fp32 else "bf16", "charts": False, "log_every": 50}
    table["evaluate"] = {"every": 0, "samples": 0}
    return recipe_from_table(table)


def measure(model: Path, asked: Sequence[Record]) -> tuple[float, float]:
    """The share of boxes that are found, and the mean IoU, of what people marked."""
    blip = openblip.load(model)
    found = []
    for record in asked:
        named = _marked(record)
        boxes = blip.ground(open_image(record.images[0]), [one.text for one in named])
        for box, one in zip(boxes, named, strict=True):
            found.append(iou((box.left, box.top, box.right, box.bottom), one.box))
    return float(np.mean(np.array(found) >= HIT)), float(np.mean(found))


def read_as_published(model: Path, out: Path) -> Path:
    """A copy of a model that reads the likeliest numbers, not medians."""
    loaded = read.load(model)
    grounder = cast(Grounder, loaded.model)
    grounder.config = replace(grounder.config, box_reading="likeliest")
    return write.save(loaded, out)


# --- boxes that see nothing ---------------------------------------------------------------------------------------


def best_constant(boxes: Boxes) -> Boxes:
    """The box that has an IoU of 0.5 or more with most of ``boxes``.

    The best of a grid of centres and sides, then moved and stretched for as long as that helps.
    """
    some = boxes[:: max(1, len(boxes) // 4000)]
    places, sides = np.linspace(0.2, 0.8, 7), np.linspace(0.15, 1.0, 8)
    grid = np.stack(np.meshgrid(places, places, sides, sides, indexing="ij"), -1).reshape(-1, 4)
    best = max(grid, key=lambda centred: _hits(some, centred))
    step = 0.05
    while step > 0.004:
        near = [best + step * move for move in np.vstack([np.zeros(4), np.eye(4), -np.eye(4)])]
        better = max(near, key=lambda centred: _hits(boxes, centred))
        best, step = (better, step) if _hits(boxes, better) > _hits(boxes, best) else (best, step / 2)
    return _corners(best)


def overlaps(boxes: Boxes, box: Boxes) -> NDArray[np.float64]:
    """IoU (N,) of boxes with one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = sides.clip(min=0).prod(1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common)


def _hits(boxes: Boxes, centred: NDArray[np.float64]) -> float:
    return float((overlaps(boxes, _corners(centred)) >= HIT).mean())


def _corners(centred: NDArray[np.float64]) -> Boxes:
    """Left, top, right, bottom of centre and sides, within the picture."""
    return np.concatenate([centred[:2] - centred[2:] / 2, centred[:2] + centred[2:] / 2]).clip(0, 1)


def _centred(boxes: Boxes) -> Boxes:
    """In the centre, with the sides that are in the middle of all."""
    return _corners(np.concatenate([[0.5, 0.5], np.median(boxes[:, 2:] - boxes[:, :2], axis=0)]))


# --- data ---------------------------------------------------------------------------------------------------------


def _records(place: Path) -> list[Record]:
    """Records in which people marked something."""
    source = open_source(str(place))
    assert isinstance(source, Source)
    return [record for record in source if _marked(record)]


def _marked(record: Record) -> list[Expression]:
    """What people marked: no box that was derived by a rule, and no expression without words."""
    return [ref for ref in record.expressions if not ref.auto and clean_expression(ref.text)]


def _shares(described: Sequence[Record]) -> Boxes:
    """All boxes, in shares of their pictures."""

    def each() -> Iterator[list[float]]:
        for record in described:
            width, height = open_image(record.images[0]).size
            yield from (
                [a / width, b / height, c / width, d / height] for a, b, c, d in (r.box for r in _marked(record))
            )

    return np.array(list(each()))


if __name__ == "__main__":
    main()
