"""Visual grounding: the box that an expression names, as four tokens after a start token.

After mmpretrain's RefCOCO training; the paper has no such task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.data.tasks.grounding import GroundingData
from openblip.decoding import decode_boxes
from openblip.decoding.boxes import COORDINATES
from openblip.engine.eager import EagerSession
from openblip.errors import ConfigError, InputError
from openblip.model.grounder import Grounder
from openblip.model.layers import Trace
from openblip.training.config.loss import GroundingLoss
from openblip.training.objectives.base import Batch, ImageBatch, Objective
from openblip.training.objectives.gather import Gather

ATTENTION_LAYERS = 2  # the attention loss trains the last layers of the fusion encoder
IOU_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class GroundingBatch(ImageBatch):
    """B expressions about I images.

    Attributes:
        pixels: Images (I, 3, S, S).
        ids: Token ids (B, T), first token [CLS].
        mask: Attention mask (B, T).
        boxes: Left, top, right and bottom (B, 4) in pixels of images of width and height `sizes`.
        sizes: Width and height (B, 2).
        image_index: Image (B,) of each expression; by default one expression per image.
    """

    boxes: Tensor
    sizes: Tensor
    image_index: Tensor | None = None


class GroundingObjective(Objective[Grounder, GroundingBatch, GroundingLoss, GroundingData]):
    """Mean cross-entropy of the four coordinates, each among the box tokens alone.

    The published code adds -10000 to the logits of all other tokens, which has the same effect. It also adds a second,
    weighted loss to the value it reports, but computes that without gradient: it trains on the plain loss alone.

    `spread` and `attention` are options of OpenBLIP for data with few boxes; 0 is the published training.

    Args:
        model: The grounder.
        log_weighted: Report the published weighted loss as `box_weighted`, for comparison with mmpretrain's logs.
        spread: Standard deviation, in bins, of a bell over the bins around each target.
        attention: Weight of a second loss, `attention`: the negative logarithm of the share of the words' attention
            inside the box (`attention_loss`).

    Raises:
        ConfigError: If `spread` is negative, or the vocabulary has too few tokens.
    """

    batch_class: ClassVar[type[Batch]] = GroundingBatch
    has_unused_parameters: ClassVar[bool] = True  # the cross-attention of the text encoder

    def __init__(
        self, model: Grounder, *, log_weighted: bool = False, spread: float = 0.0, attention: float = 0.0
    ) -> None:
        if spread < 0:
            raise ConfigError(f"spread must be 0 or more bins, got {spread}")
        last_id = model.config.box_start_id + 1 + model.config.box_bins
        vocab_size = model.config.text.vocab_size
        if last_id >= vocab_size:
            raise ConfigError(f"the vocabulary must hold box tokens up to id {last_id}, got {vocab_size} tokens")
        super().__init__(model)
        self.log_weighted = log_weighted
        self.spread = spread
        self.attention = attention

    @classmethod
    def from_settings(
        cls, model: Grounder, loss: GroundingLoss, data: GroundingData, gather: Gather
    ) -> GroundingObjective:
        """Build the objective from a recipe's loss options."""
        return cls(model, log_weighted=loss.log_weighted, spread=loss.spread, attention=loss.attention)

    def forward(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Return the loss `box` of one batch, and the optional `attention` and `box_weighted`."""
        model, bins = self.model, self.model.config.box_bins
        trace = Trace(attention=True) if self.attention else None
        tokens = model.encode_image(batch.pixels)
        memory = model.make_memory(batch.ids, batch.mask, tokens, batch.image_index, trace=trace)
        box_ids = model.box_ids(batch.ids.device)
        targets = box_bins(batch.boxes, batch.sizes, bins)
        start = batch.ids.new_full((len(targets), 1), model.config.box_start_id)
        input_ids = torch.cat([start, box_ids[targets[:, :3]]], dim=1)  # the last coordinate is only predicted
        logits = model.logits(input_ids, memory)[..., box_ids].float()  # (B, 4, bins + 1)
        labels = bell_targets(targets, bins, self.spread).transpose(1, 2) if self.spread else targets
        token_losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # (B, 4)
        losses = {"box": token_losses.mean()}
        if trace is not None:
            inside = patch_coverage(batch.boxes / batch.sizes.repeat(1, 2), math.isqrt(tokens.shape[1] - 1))
            layers = trace.cross_weights[-ATTENTION_LAYERS:]
            layer_losses = [attention_loss(weights, inside, batch.mask) for weights in layers]
            losses["attention"] = self.attention * torch.stack(layer_losses).mean()
        if self.log_weighted:
            predicted = logits.argmax(-1) / bins
            centered = to_center(batch.boxes / batch.sizes.repeat(1, 2))
            losses["box_weighted"] = _weighted_loss(token_losses, predicted, centered)
        return losses

    @torch.no_grad()
    def correct(self, batch: GroundingBatch) -> Tensor:
        """Return which expressions (B,) get a box whose IoU with the true box is at least 0.5."""
        model = self.model
        memory = model.make_memory(batch.ids, batch.mask, model.encode_image(batch.pixels), batch.image_index)
        session = EagerSession(model.decoder, model.lm_head, memory, COORDINATES)
        start = batch.ids.new_full((len(batch.ids), 1), model.config.box_start_id)
        bins, _ = decode_boxes(session, start, model.box_ids(batch.ids.device), model.config.box_reading)
        predicted = to_corners(bins.float() / model.config.box_bins) * batch.sizes.repeat(1, 2)
        intersection, union = _intersection_and_union(predicted, batch.boxes)
        return intersection >= IOU_THRESHOLD * union


def box_bins(boxes: Tensor, sizes: Tensor, bins: int) -> Tensor:
    """Return the bins of boxes: floor(share of the image * bins).

    Boxes that reach outside their image are clamped to 0 and `bins`; the published code would train on tokens that
    stand for no bin.

    Args:
        boxes: Corners (B, 4) in pixels.
        sizes: Width and height (B, 2) of the images.
        bins: Number of bins.

    Returns:
        Bins (B, 4) of center x, center y, width and height.

    Raises:
        InputError: If the corners of a box are not in order.
    """
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        raise InputError("a box must be left, top, right, bottom; got one with right < left or bottom < top")
    scaled = to_center(boxes) * bins / sizes.repeat(1, 2)  # divide last: a value on the edge of a bin stays in the bin
    return scaled.floor().long().clamp(0, bins)


def bell_targets(targets: Tensor, bins: int, spread: float) -> Tensor:
    """Return normal densities (..., bins + 1) around `targets` (...), cut off at the outer bins and normalized."""
    distance = torch.arange(bins + 1, device=targets.device) - targets[..., None]
    return (-0.5 * (distance / spread).square()).softmax(-1)


def attention_loss(weights: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """Return the mean, over words and heads, of -log of the share of attention inside the box.

    Args:
        weights: Attention (B, H, T, N + 1) to the image tokens, class token first.
        inside: Share (B, N) of each patch inside the box.
        mask: Attention mask (B, T).
    """
    shares = (weights[..., 1:].float() * inside[:, None, None]).sum(-1)  # (B, H, T)
    words = mask[:, None].expand_as(shares).to(shares.dtype)
    return -(shares.clamp(min=1e-4).log() * words).sum() / words.sum()


def patch_coverage(boxes: Tensor, side: int) -> Tensor:
    """Return the share (B, side * side) of each patch, row by row, inside `boxes` (B, 4) in shares of the image."""
    edges = torch.arange(side, device=boxes.device)
    low, high = boxes[:, :2, None] * side, boxes[:, 2:, None] * side
    columns, rows = (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp(min=0).unbind(1)
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def to_center(boxes: Tensor) -> Tensor:
    """Convert corners (B, 4) to center x, center y, width and height."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1)


def to_corners(boxes: Tensor) -> Tensor:
    """Convert center x, center y, width and height (B, 4) to left, top, right and bottom."""
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([center - half, center + half], dim=1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the pairwise GIoU (B,) of corner boxes (B, 4): IoU minus the empty share of their hull.

    Source: Rezatofighi et al. 2019.
    """
    intersection, union = _intersection_and_union(a, b)
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    return intersection / union - (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the areas (B,) of intersection and union of corner boxes (B, 4)."""
    intersection = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    return intersection, _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - intersection


@torch.no_grad()
def _weighted_loss(token_losses: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the mean of token losses times 4 |error of the coordinate| and 2 (1 - GIoU) of the box.

    As logged by mmpretrain, whose shapes (B, 1, 4) and (B, 4) broadcast: every expression's losses are weighted by
    every box.

    Args:
        token_losses: Loss (B, 4) of each coordinate.
        predicted: Centered boxes (B, 4) in shares of the image.
        truth: Centered boxes (B, 4) in shares of the image.
    """
    coordinate_weights = 4.0 * (predicted - truth).abs().clamp(0, 5)
    box_weights = 2.0 * (1.0 - generalized_iou(to_corners(predicted), to_corners(truth)))
    return (token_losses[:, None] * coordinate_weights * box_weights[:, None]).mean()
