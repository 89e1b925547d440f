"""ITC and ITM, which pretraining and retrieval share (paper section 3.2).

Shapes: B pairs, E embedding width, C columns = B of this batch, then the queue.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.errors import InputError

Draw = Callable[[Tensor], Tensor]


def multinomial(weights: Tensor) -> Tensor:
    """One column (B,) for each row of non-negative weights (B, C)."""
    return torch.multinomial(weights, 1).squeeze(1)


def soft_targets(momentum_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    """Targets (B, C): the momentum model's belief, mixed with the annotated pairs; each row sums to 1."""
    return alpha * F.softmax(momentum_logits, dim=1) + (1.0 - alpha) * hard


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with soft targets (B, C), averaged over rows."""
    return -(F.log_softmax(logits, dim=1) * targets).sum(1).mean()


def hard_negative_weights(logits: Tensor, same: Tensor, floor: float) -> Tensor:
    """Weights (B, C) of drawing each column as a negative: likelier the harder, never one of the ``same`` image.

    The floor (1e-4 in pretraining, 0 in retrieval) is added before the mask, as published. A row without any other
    image keeps all-zero weights; :func:`draw_negatives` leaves such rows out.
    """
    weights = F.softmax(logits.detach().float(), dim=1) + floor
    return weights.masked_fill(same, 0.0)


def draw_negatives(weights: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """For each row that has a possible negative: the row's number and the drawn column, both (R,), R <= B.

    A batch of one, or a batch whose texts all belong to one image, offers none; its rows train on positives alone.
    """
    rows = weights.sum(1).gt(0).nonzero().squeeze(1)
    if len(rows) == 0:
        return rows, rows
    return rows, draw(weights[rows])


def itm_loss(logits: Tensor, positives: int) -> Tensor:
    """Mean cross-entropy of match logits (P, 2), the first ``positives`` of which are matches."""
    if positives > len(logits):
        raise InputError(f"{positives} positives among {len(logits)} pairs")
    labels = (torch.arange(len(logits), device=logits.device) < positives).long()
    return F.cross_entropy(logits, labels)
