"""ITC and ITM, which pretraining and retrieval share (paper section 3.2).

Shapes: B pairs, E embedding width, C columns = the pairs of this batch, then the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model.matcher import Matcher
from openblip.model.text import Memory
from openblip.training.momentum import FeatureQueue, MomentumTwin
from openblip.training.objectives.gathering import Gather, Scope
from openblip.training.objectives.language import IGNORED

Draw = Callable[[Tensor], Tensor]


def multinomial(weights: Tensor) -> Tensor:
    """One column (B,) for each row of non-negative weights (B, C)."""
    return torch.multinomial(weights, 1).squeeze(1)


@dataclass(frozen=True)
class Features:
    """L2-normalised features (B, E) of a batch: by the model, and by its momentum twin (``_m``, without gradient)."""

    image: Tensor
    text: Tensor
    image_m: Tensor
    text_m: Tensor


class ContrastiveObjective(nn.Module):
    """Base of the objectives that train embeddings: momentum features, ITC against queues, ITM with hard negatives.

    Pairs are told apart by ids (B,): in retrieval those of their images, in pretraining one per pair. Pairs of one id
    are positives of each other in ITC and never negatives in ITM.

    ``negatives`` says whether ITM draws negatives from this process's batch or from all; ``itc_columns`` does the same
    for the batch's columns of ITC, where every published code keeps to its own process. The queues always take in the
    features of all processes. ``draw`` picks one column per row of weights, ``temperature_range`` is what the learned
    temperature is held to (mmpretrain does not: ``None``).

    Training learns the temperature: where the model keeps it as a buffer, it becomes a parameter of that model under
    the same name, so that the weights saved from it are complete at any step.
    """

    def __init__(
        self,
        model: Matcher,
        *,
        queue_size: int = 57600,
        momentum: float = 0.995,
        negatives: Scope = "rank",
        itc_columns: Scope = "rank",
        temperature_range: tuple[float, float] | None = (0.001, 0.5),
        draw: Draw = multinomial,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        _learn_temperature(model)
        self.model = model
        self.twin = MomentumTwin(model, momentum)
        self.queue = FeatureQueue(model.config.embed_width, queue_size)
        self.temperature_range = temperature_range
        self.draw = draw
        self.gather = gather or Gather()
        self.itm_gather = self.gather if negatives == "all" else Gather()
        self.itc_gather = self.gather if itc_columns == "all" else Gather()

    def features(self, pixels: Tensor, tokens: Tensor, ids: Tensor, mask: Tensor) -> Features:
        """Features of images, also given as ``tokens`` (B, N + 1, D_v), and of texts that start with [CLS].

        In training this first clamps the temperature and moves the twin, as the published forward does.
        """
        model = self.model
        if self.training:
            if self.temperature_range is not None:
                with torch.no_grad():
                    model.temperature.clamp_(*self.temperature_range)
            self.twin.update(model)
        image, text = model.embed_image(tokens), model.embed_text(ids, mask)
        image_m, text_m = self.twin.embed(pixels, ids, mask)
        return Features(image.float(), text.float(), image_m.float(), text_m.float())

    def itc(self, features: Features, pair_ids: Tensor, alpha: float) -> Tensor:
        """The ITC loss; ``alpha`` is the weight of the twin's soft targets. In training the queues then advance."""
        queue, gather = self.queue, self.itc_gather
        with torch.autocast(pair_ids.device.type, enabled=False):  # similarities / 0.07 need more than 8 bits
            images = torch.cat([gather(features.image_m).T, queue.image], dim=1)  # (E, C)
            texts = torch.cat([gather(features.text_m).T, queue.text], dim=1)
            hard = same_id(pair_ids, torch.cat([gather(pair_ids), queue.ids[0]])).float()
            hard = hard / hard.sum(1, keepdim=True)
            temperature = self.model.temperature.float()
            with torch.no_grad():
                target_i2t = soft_targets(features.image_m @ texts / temperature, hard, alpha)
                target_t2i = soft_targets(features.text_m @ images / temperature, hard, alpha)
            loss_i2t = soft_cross_entropy(features.image @ texts / temperature, target_i2t)
            loss_t2i = soft_cross_entropy(features.text @ images / temperature, target_t2i)
        if self.training:
            self.advance_queues(features, pair_ids)
        return (loss_i2t + loss_t2i) / 2

    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        """Put the batch's momentum features, and in retrieval its ids, into the queues."""
        raise NotImplementedError

    @torch.no_grad()
    def negatives(self, pair_ids: Tensor, features: Features, bank: tuple[Tensor, Tensor], floor: float) -> Negatives:
        """Draw a wrong image for each text, then a wrong text for each image.

        ``bank`` holds the (image, text) features that the weights are computed against.
        """
        images, texts = (self.itm_gather(part.detach()) for part in bank)
        same = same_id(pair_ids, self.itm_gather(pair_ids))
        with torch.autocast(pair_ids.device.type, enabled=False):
            temperature = self.model.temperature.float()
            t2i = hard_negative_weights(features.text @ images.T / temperature, same, floor)
            i2t = hard_negative_weights(features.image @ texts.T / temperature, same, floor)
        return Negatives(draw_negatives(t2i, self.draw), draw_negatives(i2t, self.draw), ~same.all(1))

    def itm(self, tokens: Tensor, memory: Memory, ids: Tensor, mask: Tensor, negatives: Negatives) -> Tensor:
        """The ITM loss over B matches and up to 2 B others: mean cross-entropy.

        ``memory`` is the projection of the image tokens (B, N + 1, D_v); ids (B, T) start with [ENC]. Every image is
        read by its own text and by a wrong one in one pass, so that its keys need no copying; a second pass reads the
        wrong images. Pairs without a possible negative count as matches alone.
        """
        model, gather = self.model, self.itm_gather
        wrong_ids, wrong_mask = gather(ids)[negatives.texts], gather(mask)[negatives.texts]
        two_ids, two_masks = torch.stack([ids, wrong_ids], 1), torch.stack([mask, wrong_mask], 1)  # (B, 2, T)
        of_image = model.match_logits(two_ids.flatten(0, 1), two_masks.flatten(0, 1), memory).view(-1, 2, 2)
        world = gather(tokens)
        wrong = memory.select(negatives.images) if world is tokens else model.text.project(world[negatives.images])
        of_text = model.match_logits(ids, mask, wrong)
        logits = torch.cat([of_image[:, 0], of_image[:, 1], of_text])
        no_match = torch.where(negatives.exist, 0, IGNORED)
        labels = torch.cat([torch.ones_like(no_match), no_match, no_match])
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)


@dataclass(frozen=True)
class Negatives:
    """For each pair, the row of a wrong image and of a wrong text (B,), and whether there is any (B,)."""

    images: Tensor
    texts: Tensor
    exist: Tensor


def same_id(ids: Tensor, others: Tensor) -> Tensor:
    """Which of ``others`` (C,) has the id of each of ``ids`` (B,): (B, C)."""
    return ids[:, None] == others[None, :]


def soft_targets(momentum_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    """Targets (B, C): the momentum model's belief, mixed with the annotated pairs; each row sums to 1."""
    return alpha * F.softmax(momentum_logits, dim=1) + (1.0 - alpha) * hard


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with soft targets (B, C), averaged over rows."""
    return -(F.log_softmax(logits, dim=1) * targets).sum(1).mean()


def hard_negative_weights(logits: Tensor, same: Tensor, floor: float) -> Tensor:
    """Weights (B, C) of drawing each column as a negative: likelier the harder, never one of the ``same`` id.

    In pretraining a floor of 1e-4 is added to the softmax before the mask, as published. In retrieval there is none,
    and the mask comes before the softmax: the same odds as published, but a sharp temperature cannot round them all to
    0. A row that has no negative is all 0.
    """
    if floor > 0.0:
        return (F.softmax(logits, dim=1) + floor).masked_fill(same, 0.0)
    return F.softmax(logits.masked_fill(same, -torch.inf), dim=1).masked_fill(same, 0.0)


def draw_negatives(weights: Tensor, draw: Draw) -> Tensor:
    """A column (B,) for each row of weights; where they are all 0, as in a batch of one image, any column."""
    return draw(torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0))


def _learn_temperature(model: Matcher) -> None:
    temperature = model.temperature
    if not isinstance(temperature, nn.Parameter):
        del model.temperature
        model.temperature = nn.Parameter(temperature.clone())
