"""Boxes as tokens: four coordinates, each the likeliest of the tokens that stand for one.

Shapes: I items (expressions), C tokens that stand for coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.protocol import Session

COORDINATES = 4  # centre x, centre y, width, height


@torch.inference_mode()
def decode_boxes(session: Session, start: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Bins (I, 4) and the log-probability (I,) of all four together.

    ``start`` (I, 1) is the token that a box begins with; ``places`` (C,) the tokens of the coordinates, in the order of
    their bins, among which the probabilities are taken.
    """
    fed, bins = start, []
    logprob = torch.zeros(len(start), device=start.device)
    for _ in range(COORDINATES):
        gained, best = session.step(fed)[:, places].log_softmax(-1).max(-1)
        logprob = logprob + gained
        bins.append(best)
        fed = places[best, None]
    return torch.stack(bins, 1), logprob
