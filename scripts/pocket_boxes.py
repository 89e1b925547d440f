"""Prepare a pretrained model for boxes: give its image encoder left and right, and its box tokens an order.

    python scripts/pocket_boxes.py --model runs/pocket/pretrain/model --out runs/pocket/boxes

`pocket` was pretrained on images that were mirrored half of the time. Such training needs no left and right: the
position embeddings of a column and of the opposite column are nearly equal, and no linear map reads a patch's column
off its features. So this script adds waves along the columns to the embeddings, in random directions, with a quarter of
the length of a patch's pixel embedding. The features change little.

Box tokens occur in no text, and pretraining has moved them all in one direction. The script draws them again, as waves
over the bins in random directions, with the length of word embeddings: near bins get similar embeddings.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from openblip.checkpoints import read, write
from openblip.model.pretrainer import Pretrainer

FIRST_ID, BINS = 6, 64  # of the box tokens, after a start token; as in recipes/pocket/grounding.yaml
WAVES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/pocket/pretrain/model"), help="pretrained model")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/boxes"), help="folder to write")
    parser.add_argument("--length", type=float, default=10.0, help="mean length of the waves")
    parser.add_argument("--seed", type=int, default=0, help="seed of the directions")
    options = parser.parse_args()
    loaded = read.load(options.model)
    model = cast(Pretrainer, loaded.model)
    generator = torch.Generator().manual_seed(options.seed)
    positions = model.vision.pos_embed[0, 1:].detach()  # (N, D), without the class token
    side = math.isqrt(len(positions))
    grid, words = positions.view(side, side, -1), model.text.embeddings.word.weight.detach()
    print_figures("before", grid, words)
    grid += column_waves(side, grid.shape[2], options.length, generator)
    words[FIRST_ID : FIRST_ID + BINS + 1] = bin_waves(
        words.shape[1], float(words[FIRST_ID + BINS + 1 :].norm(dim=1).mean()), generator
    )
    print_figures("after", grid, words)
    write.save(loaded, options.out)


def column_waves(side: int, width: int, length: float, generator: torch.Generator) -> Tensor:
    """Return (side, width): a slope, one wave and two waves from left to right, equally strong."""
    position = torch.linspace(-1, 1, side)
    return spread(
        [position, torch.sin(math.pi * position), torch.sin(2 * math.pi * position)], width, length, generator
    )


def bin_waves(width: int, length: float, generator: torch.Generator) -> Tensor:
    """Return (BINS + 1, width): half waves from the first bin to the last; longer ones are stronger."""
    position = torch.linspace(0, 1, BINS + 1)
    return spread(
        [torch.cos(math.pi * k * position) / math.sqrt(k) for k in range(1, WAVES + 1)], width, length, generator
    )


def spread(waves: list[Tensor], width: int, length: float, generator: torch.Generator) -> Tensor:
    """Return the sum of waves in orthogonal random directions, with this mean length."""
    directions = torch.linalg.qr(torch.randn(width, len(waves), generator=generator)).Q.T
    table = torch.stack(waves, 1) @ directions
    return table * (length / table.norm(dim=1).mean())


def print_figures(when: str, grid: Tensor, words: Tensor) -> None:
    """Print how far positions tell left from right and top from bottom, and how similar box tokens are."""
    centered = grid - grid.mean((0, 1))
    left_right, top_bottom = (((centered - centered.flip(axis)) / 2).square().sum() for axis in (1, 0))
    unit = torch.nn.functional.normalize(words[FIRST_ID : FIRST_ID + BINS + 1], dim=1)
    total = centered.square().sum()
    print(
        f"{when}: {left_right / total:.1%} of the position embeddings tell left from right and "
        f"{top_bottom / total:.1%} top from bottom; cosine of two bins {(unit @ unit.T).mean():.2f}, "
        f"of neighbors {(unit[1:] * unit[:-1]).sum(1).mean():.2f}"
    )


if __name__ == "__main__":
    main()
