"""Boxes as tokens: four coordinates, each computed from the probabilities of the coordinate tokens.

Shapes: I items (expressions), C coordinate tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.decoding.protocol import Session
from openblip.model.config import BoxReading

COORDINATES = 4  # center x, center y, width, height


@torch.inference_mode()
def decode_boxes(
    session: Session, start: Tensor, coordinate_ids: Tensor, reading: BoxReading = "likeliest"
) -> tuple[Tensor, Tensor]:
    """Decode one box per item.

    Args:
        session: A session with one row per item.
        start: First token of a box (I, 1).
        coordinate_ids: Ids of the coordinate tokens (C,), in the order of their bins. Probabilities are normalized over
            these tokens.
        reading: How a number follows from the probabilities. `"likeliest"`, as published, takes the lower edge of the
            likeliest bin. `"median"` takes the point, inside a bin, that halves the probability: a box needs to be
            nearly right, so a broad hill counts more than the highest peak.

    Returns:
        Numbers (I, 4) in bins, and the log-probability (I,) of their bins.
    """
    ids, numbers = start, []
    logprob = torch.zeros(len(start), device=start.device)
    for _ in range(COORDINATES):
        scores = session.step(ids)[:, coordinate_ids].float().log_softmax(-1)
        bins = scores.argmax(-1)
        number = bins.float()
        if reading == "median":
            bins, number = find_medians(scores.exp())
        logprob = logprob + scores.gather(1, bins[:, None])[:, 0]
        numbers.append(number)
        ids = coordinate_ids[bins, None]
    return torch.stack(numbers, 1), logprob


def find_medians(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Find the median of each histogram.

    Args:
        weights: Weights of the bins (I, C); bin b is the interval from b to b + 1.

    Returns:
        The bin (I,) of each median, and the median (I,), the smallest one if bins without weight make it ambiguous.
    """
    cumulative = weights.cumsum(-1)
    half = cumulative[:, -1:] / 2
    bins = (cumulative < half).sum(-1, keepdim=True)
    fraction = 1 - (cumulative.gather(1, bins) - half) / weights.gather(1, bins)
    return bins[:, 0], (bins + fraction)[:, 0]
