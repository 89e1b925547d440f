"""Cache what the stem of `pocket` makes of fixed views of every photo, so that training never runs the stem.

    python scripts/pocket_views.py --data DATA --start DATA/pocket/start --out DATA/pocket/views --views 5

One part for each tar of DATA/train, val, more and extra, one file for each part and view; a stopped run resumes at
the next file. Takes about 25 ms of one core for each photo and view by OpenVINO, 90 ms by PyTorch; 35 kB on disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openblip.checkpoints import read
from openblip.data.sources.tars import open_tar
from openblip.data.views import Encode, Views, build_part
from openblip.errors import ConfigError
from openblip.model.base import ImageTextModel
from openblip.model.stem import EfficientNetLite
from openblip.preprocess.image import to_tensor
from openblip.preprocess.settings import ImageSettings

FOLDERS = ("train", "val", "more", "extra")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, val/, more/ and extra/ tars")
    parser.add_argument("--start", type=Path, required=True, help="what scripts/pocket_start.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the cache")
    parser.add_argument("--views", type=int, default=5, help="views of each training photo; others get one")
    parser.add_argument("--size", type=int, default=0, help="side of a view in pixels; 0 takes the model's")
    parser.add_argument("--tars", default="*", help="pattern of the names of the tars, without .tar")
    parser.add_argument("--engine", choices=("openvino", "torch"), default="openvino")
    options = parser.parse_args()
    loaded = read.load(options.start)
    stem = cast(ImageTextModel, loaded.model).vision.stem
    if stem is None:
        raise ConfigError(f"the model in {options.start} has no stem whose features could be cached")
    image = replace(loaded.image, size=options.size or loaded.image.size)
    trunk = load_openvino(stem, image.size) if options.engine == "openvino" else run_torch(stem)
    encode = prepare(trunk, image)
    views = Views(image.size)
    for number in range(options.views):
        for folder in FOLDERS:
            if number == 0 or folder in ("train", "more"):
                tars = sorted((options.data / folder).glob(f"{options.tars}.tar"))
                build_tars(tars, number, views, encode, options.out)


def build_tars(paths: Sequence[Path], number: int, views: Views, encode: Encode, out: Path) -> None:
    """Cache one view of all photos in tars, and print how long each tar took."""
    for path in paths:
        began = time.monotonic()
        table = open_tar(str(path))
        images = [table[index].images[0] for index in range(len(table))]
        build_part(out, f"{path.parent.name}-{path.stem}", images, [number], views, encode)
        print(f"{path.name}: view {number} of {len(images)} photos, {time.monotonic() - began:.0f} s", flush=True)


def prepare(trunk: Callable[[Tensor], NDArray[np.floating]], image: ImageSettings) -> Encode:
    """Return what makes features of bytes: normalization, then the trunk."""

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        return trunk(to_tensor(torch.from_numpy(pixels), image))

    return encode


def run_torch(stem: EfficientNetLite) -> Callable[[Tensor], NDArray[np.floating]]:
    """Return the trunk as a function of normalized pixels (B, 3, S, S)."""

    def trunk(pixels: Tensor) -> NDArray[np.floating]:
        with torch.inference_mode():
            return stem.trunk(pixels).numpy()

    return trunk


def load_openvino(stem: EfficientNetLite, size: int) -> Callable[[Tensor], NDArray[np.floating]]:
    """Return the same function, compiled by OpenVINO for one thread."""
    import openvino

    model = openvino.convert_model(_Trunk(stem), example_input=torch.zeros(8, 3, size, size))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    return lambda pixels: cast("NDArray[np.floating]", compiled(pixels.numpy())[0])


class _Trunk(nn.Module):
    def __init__(self, stem: EfficientNetLite) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, pixels: Tensor) -> Tensor:
        return self.stem.trunk(pixels)


if __name__ == "__main__":
    main()
