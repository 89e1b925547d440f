"""Boxes as tokens: four coordinates, each read off the probabilities of the tokens that stand for one.

Shapes: I items (expressions), C tokens that stand for coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.protocol import Session
from openblip.model.config import BoxReading

COORDINATES = 4  # centre x, centre y, width, height


@torch.inference_mode()
def decode_boxes(
    session: Session, start: Tensor, places: Tensor, reading: BoxReading = "likeliest"
) -> tuple[Tensor, Tensor]:
    """Numbers (I, 4) in bins, and the log-probability (I,) of the four bins that they lie in.

    ``start`` (I, 1) is the token that a box begins with; ``places`` (C,) the tokens of the coordinates, in the order of
    their bins, among which the probabilities are taken. By "likeliest", as published, a number is the lower edge of the
    likeliest bin. By "median" it is where half of the probability lies below, straight through a bin: what a box needs
    is to be nearly right, so a broad hill counts for more than the highest peak.
    """
    fed, numbers = start, []
    logprob = torch.zeros(len(start), device=start.device)
    for _ in range(COORDINATES):
        scores = session.step(fed)[:, places].float().log_softmax(-1)
        bins = scores.argmax(-1)
        number = bins.float()
        if reading == "median":
            bins, number = medians(scores.exp())
        logprob = logprob + scores.gather(1, bins[:, None])[:, 0]
        numbers.append(number)
        fed = places[bins, None]
    return torch.stack(numbers, 1), logprob


def medians(shares: Tensor) -> tuple[Tensor, Tensor]:
    """The bin (I,) in which each distribution (I, C) is halved, and where: bin b reaches from b to b + 1.

    The first such point, if bins of no weight lie in the middle.
    """
    below = shares.cumsum(-1)
    half = below[:, -1:] / 2
    bins = (below < half).sum(-1, keepdim=True)
    inside = shares.gather(1, bins)
    part = 1 - (below.gather(1, bins) - half) / inside
    return bins[:, 0], (bins + part)[:, 0]
