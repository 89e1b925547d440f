"""Find training photos of `pocket` that are too like a photo it is judged by.

    python scripts/pocket_leakage.py --data DATA --lists DATA/pocket --samples DATA/samples examples/photos

Every photo is reduced to 16 x 16 gray values of mean 0 and norm 1. Two photos are alike if the product of these, or of
one with the mirror image of the other, exceeds 0.92. Compares all training photos with the validation photos, the
held-out everyday photos, and those in the folders given as `--samples`; lists the pairs and exits with 1 if any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openblip.data.images import FileImage, ImageRef, open_image
from openblip.data.sources import open_source

SIDE = 16
LIMIT = 0.92

Sketches = NDArray[np.float32]  # (photos, 256), each of mean 0 and norm 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, val/ and more/ tars")
    parser.add_argument("--lists", type=Path, required=True, help="what scripts/pocket_data.py wrote")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="folders of photos that are looked at")
    options = parser.parse_args()
    train = list_images(options.data, options.lists / "train.jsonl")
    judged = list_images(options.data, options.data / "val")
    judged += list_images(options.data, options.lists / "everyday_val.jsonl")
    for folder in options.samples:
        judged += [FileImage(str(path)) for path in sorted(folder.glob("*.jpg"))]
    pairs = find_pairs(sketch_all(train), sketch_all(judged))
    for first, second, likeness in pairs:
        print(f"{likeness:.3f}  {train[first].address}  {judged[second].address}")
    print(f"{len(pairs)} of {len(train)} x {len(judged)} pairs are more alike than {LIMIT}")
    sys.exit(bool(pairs))


def list_images(data: Path, path: Path) -> list[ImageRef]:
    """Return the images of one source, whose relative paths start in the folder of the data."""
    source = open_source(str(path), images=str(data))
    return [source[index].images[0] for index in range(len(source))]  # type: ignore[arg-type, index]


def sketch_all(images: Sequence[ImageRef]) -> Sketches:
    """Return the sketch of every image."""
    return np.stack([sketch(open_image(image)) for image in images])


def sketch(image: Image.Image) -> NDArray[np.float32]:
    """Return 256 gray values of an image, of mean 0 and norm 1; zeros for one of a single color."""
    gray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    centered = gray - gray.mean()
    norm = float(np.linalg.norm(centered))
    return centered / norm if norm > 0 else centered


def find_pairs(first: Sketches, second: Sketches, limit: float = LIMIT) -> list[tuple[int, int, float]]:
    """Return the pairs that are alike, directly or mirrored: a row of `first`, one of `second`, and how alike."""
    mirrored = first.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(first), -1)
    pairs: dict[tuple[int, int], float] = {}
    for sketches in (first, mirrored):
        likeness = sketches @ second.T
        for row, column in np.argwhere(likeness > limit):
            key = int(row), int(column)
            pairs[key] = max(pairs.get(key, 0.0), float(likeness[row, column]))
    return sorted(((*key, value) for key, value in pairs.items()), key=_likeness)


def _likeness(pair: tuple[int, int, float]) -> float:
    return -pair[2]


if __name__ == "__main__":
    main()
