"""Ready a pretrained model for boxes: its image encoder learns which side is which, and its numbers their order.

    python scripts/pocket_boxes.py --model runs/pocket/pretrain/model --out runs/pocket/boxes

``pocket`` was pretrained on pictures that were mirrored as often as not. What is right for a picture and for its mirror
image alike needs no left and right: its position embeddings are all but the same in a column and in the one opposite,
and no linear map reads a patch's column off its features. So waves along the columns are added to the embeddings, in
directions of their own, a quarter as long as what the pixels of a patch bring along; features hardly turn by it.

Coordinates are tokens that no text ever held, which pretraining has pushed aside together, all the same way. They are
drawn anew, as waves over the bins in directions of their own, as long as words are: near numbers are alike.
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

FIRST, BINS = 6, 64  # the first coordinate's token, after a start token, as recipes/pocket/grounding.yaml has them
WAVES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/pocket/pretrain/model"))
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/boxes"))
    parser.add_argument("--length", type=float, default=10.0, help="of what positions get, on average")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    loaded = read.load(options.model)
    model = cast(Pretrainer, loaded.model)
    draw = torch.Generator().manual_seed(options.seed)
    positions = model.vision.pos_embed[0, 1:].detach()  # (N, D), without the class token's
    side = math.isqrt(len(positions))
    grid, words = positions.view(side, side, -1), model.text.embeddings.word.weight.detach()
    _tell("before", grid, words)
    grid += sides(side, grid.shape[2], options.length, draw)
    words[FIRST : FIRST + BINS + 1] = numbers(words.shape[1], float(words[FIRST + BINS + 1 :].norm(dim=1).mean()), draw)
    _tell("after", grid, words)
    write.save(loaded, options.out)


def sides(side: int, width: int, length: float, draw: torch.Generator) -> Tensor:
    """(side, width): a slope, one wave and two from the left to the right, equally strong."""
    along = torch.linspace(-1, 1, side)
    return _spread([along, torch.sin(math.pi * along), torch.sin(2 * math.pi * along)], width, length, draw)


def numbers(width: int, length: float, draw: torch.Generator) -> Tensor:
    """(BINS + 1, width): half waves from the first bin to the last, the longer the stronger."""
    along = torch.linspace(0, 1, BINS + 1)
    return _spread([torch.cos(math.pi * k * along) / math.sqrt(k) for k in range(1, WAVES + 1)], width, length, draw)


def _spread(waves: list[Tensor], width: int, length: float, draw: torch.Generator) -> Tensor:
    """The waves, each in a random direction of its own, together of this length on average."""
    directions = torch.linalg.qr(torch.randn(width, len(waves), generator=draw)).Q.T
    table = torch.stack(waves, 1) @ directions
    return table * (length / table.norm(dim=1).mean())


def _tell(when: str, grid: Tensor, words: Tensor) -> None:
    centred = grid - grid.mean((0, 1))
    left_right, top_bottom = (((centred - centred.flip(axis)) / 2).square().sum() for axis in (1, 0))
    unit = torch.nn.functional.normalize(words[FIRST : FIRST + BINS + 1], dim=1)
    whole = centred.square().sum()
    print(
        f"{when}: of the positions {left_right / whole:.1%} tell left from right and {top_bottom / whole:.1%} top "
        f"from bottom; cosine of two numbers {(unit @ unit.T).mean():.2f}, "
        f"of neighbours {(unit[1:] * unit[:-1]).sum(1).mean():.2f}"
    )


if __name__ == "__main__":
    main()
