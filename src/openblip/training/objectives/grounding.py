"""Visual grounding: the box that an expression names, as four tokens after a start token.

After mmpretrain's RefCOCO training; the paper has no such task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.model.grounder import Grounder
from openblip.model.layers import Trace

LOOKING = 2  # last layers of the fusion encoder that learn where to look


@dataclass(frozen=True, kw_only=True)
class GroundingBatch:
    """B expressions about I images.

    ``pixels`` (I, 3, S, S); ``ids`` and ``mask`` (B, T), first token [CLS]; ``boxes`` (B, 4), left, top, right and
    bottom in pixels of a picture whose width and height are ``sizes`` (B, 2). ``image`` (B,) is the image of each
    expression; without it there is one expression per image.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    boxes: Tensor
    sizes: Tensor
    image: Tensor | None = None


class Grounding(nn.Module):
    """Mean cross-entropy of the four coordinates, each among the bins alone.

    The published code adds -10000 to the logits of all other tokens, which comes to the same. It also sums a second,
    weighted loss into what it reports, but computes that without gradient: it trains on the plain loss alone.
    ``log_weighted`` adds that value as ``box_weighted``, for comparison with its logs.

    Two options are ours, for few boxes, and 0 as published. ``spread`` (bins) lets each target be a bell over the bins,
    of this standard deviation: bins near the right one are nearly right. ``attention`` is the weight of a second loss,
    named so: the negative logarithm of the share of the box in what the words look at (:func:`looking_away`).
    """

    def __init__(
        self, model: Grounder, *, log_weighted: bool = False, spread: float = 0.0, attention: float = 0.0
    ) -> None:
        super().__init__()
        if spread < 0:
            raise ConfigError(f"spread is a standard deviation in bins, 0 or more, not {spread}")
        last = model.config.box_start_id + 1 + model.config.box_bins
        if last >= (words := model.config.text.vocab_size):
            raise ConfigError(f"a vocabulary of {words} tokens has no room for box tokens up to id {last}")
        self.model = model
        self.log_weighted = log_weighted
        self.spread = spread
        self.attention = attention

    def forward(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """The loss ``box`` of one batch, and ``attention`` and ``box_weighted`` if asked for."""
        model, bins = self.model, self.model.config.box_bins
        trace = Trace(attention=True) if self.attention else None
        tokens = model.encode_image(batch.pixels)
        memory = model.read(batch.ids, batch.mask, tokens, batch.image, trace=trace)
        places = model.box_ids(batch.ids.device)
        targets = box_bins(batch.boxes, batch.sizes, bins)
        start = batch.ids.new_full((len(targets), 1), model.config.box_start_id)
        fed = torch.cat([start, places[targets[:, :3]]], dim=1)  # the last coordinate is only predicted
        logits = model.logits(fed, memory)[..., places].float()  # (B, 4, bins + 1)
        wanted = bells(targets, bins, self.spread).transpose(1, 2) if self.spread else targets
        each = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")  # (B, 4)
        losses = {"box": each.mean()}
        if trace is not None:
            inside = covered(batch.boxes / batch.sizes.repeat(1, 2), math.isqrt(tokens.shape[1] - 1))
            away = [looking_away(weights, inside, batch.mask) for weights in trace.cross_weights[-LOOKING:]]
            losses["attention"] = self.attention * torch.stack(away).mean()
        if self.log_weighted:
            guess = logits.argmax(-1) / bins
            losses["box_weighted"] = _weighted(each, guess, centred(batch.boxes / batch.sizes.repeat(1, 2)))
        return losses


def box_bins(boxes: Tensor, sizes: Tensor, bins: int) -> Tensor:
    """Bins (B, 4) of centre x, centre y, width and height of ``boxes`` (B, 4), corners in pixels of ``sizes`` (B, 2).

    Each is floor(share of the picture * bins). What a box outside its picture would get beyond 0 and ``bins`` is held
    to them; the published code would train on tokens that stand for no bin. Raises :class:`InputError` for a box whose
    corners are not in order.
    """
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        raise InputError("a box is left, top, right, bottom; one has its right or bottom before its left or top")
    scaled = centred(boxes) * bins / sizes.repeat(1, 2)  # divided last: what falls on the edge of a bin stays in it
    return scaled.floor().long().clamp(0, bins)


def bells(targets: Tensor, bins: int, spread: float) -> Tensor:
    """Shares (..., bins + 1) of normal densities around ``targets`` (...), cut off at the first and the last bin."""
    away = torch.arange(bins + 1, device=targets.device) - targets[..., None]
    return (-0.5 * (away / spread).square()).softmax(-1)


def looking_away(weights: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """Mean over words and heads of -log of the share of attention that falls into the box.

    ``weights`` (B, H, T, N + 1) to the image's tokens, the class token first; ``inside`` (B, N) the share of each patch
    that is; ``mask`` (B, T).
    """
    shares = (weights[..., 1:].float() * inside[:, None, None]).sum(-1)  # (B, H, T)
    words = mask[:, None].expand_as(shares).to(shares.dtype)
    return -(shares.clamp(min=1e-4).log() * words).sum() / words.sum()


def covered(boxes: Tensor, side: int) -> Tensor:
    """The share (B, side * side) of each patch, row by row, that lies in ``boxes`` (B, 4), in shares of the picture."""
    edges = torch.arange(side, device=boxes.device)
    low, high = boxes[:, :2, None] * side, boxes[:, 2:, None] * side
    across, down = (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp(min=0).unbind(1)
    return (down[:, :, None] * across[:, None, :]).flatten(1)


def centred(boxes: Tensor) -> Tensor:
    """Corners (B, 4) to centre x, centre y, width, height."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1)


def corners(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height (B, 4) to left, top, right, bottom."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=1)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU (B,) of corner boxes (B, 4), pairwise (Rezatofighi et al. 2019): IoU less the empty share of their hull."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    shared = area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    hull = area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - shared
    return shared / union - (hull - union) / hull


@torch.no_grad()
def _weighted(each: Tensor, guess: Tensor, truth: Tensor) -> Tensor:
    """Token losses (B, 4) times 4 |error of the coordinate| and 2 (1 - GIoU) of the box, averaged.

    As logged by mmpretrain, whose shapes (B, 1, 4) and (B, 4) broadcast: every expression's losses are weighted by
    every box. ``guess`` and ``truth`` (B, 4) are centred boxes in shares of the picture.
    """
    by_coordinate = 4.0 * (guess - truth).abs().clamp(0, 5)
    by_box = 2.0 * (1.0 - generalised_iou(corners(guess), corners(truth)))
    return (each[:, None] * by_coordinate * by_box[:, None]).mean()
