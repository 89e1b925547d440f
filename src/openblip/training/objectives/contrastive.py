"""ITC and ITM, the losses that pretraining and retrieval share (paper section 3.2).

Shapes: B pairs, E embedding width, C columns: the pairs of this batch, then the queue.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.data.tasks.base import CaptionedData
from openblip.model.matcher import Matcher
from openblip.model.text import Memory
from openblip.training.config.loss import PretrainLoss, RetrievalLoss
from openblip.training.momentum import FeatureQueue, MomentumTwin
from openblip.training.objectives.base import ImageBatch, Objective
from openblip.training.objectives.gather import Gather, Scope
from openblip.training.objectives.language import IGNORED, with_first_token
from openblip.training.recall import measure_recall

Draw = Callable[[Tensor], Tensor]
ModelT = TypeVar("ModelT", bound=Matcher)
BatchT = TypeVar("BatchT", bound=ImageBatch)
LossT = TypeVar("LossT", PretrainLoss, RetrievalLoss)
DataT = TypeVar("DataT", bound=CaptionedData)


def multinomial(weights: Tensor) -> Tensor:
    """Draw one column (B,) for each row of non-negative weights (B, C)."""
    return torch.multinomial(weights, 1).squeeze(1)


@dataclass(frozen=True)
class Features:
    """L2-normalized features (B, E) of a batch by the model, and by its momentum twin (`_m`, without gradient)."""

    image: Tensor
    text: Tensor
    image_m: Tensor
    text_m: Tensor


@dataclass(frozen=True)
class Negatives:
    """For each pair, the row of a wrong image and of a wrong text (B,), and whether there is any (B,)."""

    images: Tensor
    texts: Tensor
    exist: Tensor


class ContrastiveOptions(TypedDict):
    """The arguments of `ContrastiveObjective` that a recipe sets."""

    queue_size: int
    momentum: float
    alpha: float
    alpha_epochs: float
    negatives: Scope
    itc_columns: Scope
    gather: Gather


class ContrastiveObjective(Objective[ModelT, BatchT, LossT, DataT]):
    """Base of the objectives that train embeddings: momentum features, ITC against queues, ITM with hard negatives.

    Ids (B,) identify pairs: in retrieval the ids of their images, in pretraining one id per pair. Pairs of one id are
    positives of each other in ITC and never negatives in ITM. The queues always take the features of all processes.

    Training learns the temperature: a model that keeps it as a buffer gets a parameter under the same name, so that the
    weights saved from it are complete at any step.

    Args:
        model: The model to train.
        queue_size: Features kept in each queue.
        momentum: Momentum of the twin.
        alpha: Final weight of the momentum targets; it rises from 0 in a straight line.
        alpha_epochs: Epochs over which it rises.
        negatives: Draw the negatives of ITM from this process's batch ("rank") or from all ("all").
        itc_columns: Compare in ITC with this process's batch ("rank", as in every published code) or with all ("all").
        temperature_range: Limits of the learned temperature; `None` sets none, as in mmpretrain.
        draw: Picks one column per row of weights.
        gather: Gathers tensors of all processes.
    """

    negatives_by_twin: ClassVar[bool]
    """Whether the features of the twin weight the candidates for negatives, or those of the model."""
    negative_floor: ClassVar[float]
    """See `hard_negative_weights`."""

    def __init__(
        self,
        model: ModelT,
        *,
        queue_size: int = 57600,
        momentum: float = 0.995,
        alpha: float = 0.4,
        alpha_epochs: float = 1.0,
        negatives: Scope = "rank",
        itc_columns: Scope = "rank",
        temperature_range: tuple[float, float] | None = (0.001, 0.5),
        draw: Draw = multinomial,
        gather: Gather | None = None,
    ) -> None:
        if not isinstance(model.temperature, nn.Parameter):
            temperature = model.temperature
            del model.temperature
            model.temperature = nn.Parameter(temperature.clone())
        super().__init__(model)
        self.twin = MomentumTwin(model, momentum)
        self.queue = FeatureQueue(model.config.embed_width, queue_size)
        self.alpha, self.alpha_epochs = alpha, alpha_epochs
        self.temperature_range = temperature_range
        self.draw = draw
        self.gather = gather or Gather()
        self.itm_gather = self.gather if negatives == "all" else Gather()
        self.itc_gather = self.gather if itc_columns == "all" else Gather()

    @staticmethod
    def options(loss: PretrainLoss | RetrievalLoss, gather: Gather) -> ContrastiveOptions:
        """Return the options of this class in a recipe's loss."""
        return {
            "queue_size": loss.queue_size,
            "momentum": loss.momentum,
            "alpha": loss.alpha,
            "alpha_epochs": loss.alpha_epochs,
            "negatives": loss.negatives,
            "itc_columns": loss.itc_columns,
            "gather": gather,
        }

    def step_arguments(self, batches_done: int, batches_per_epoch: int) -> dict[str, float]:
        """Return `alpha`, which rises from 0 over the first epochs."""
        return {"alpha": self.alpha * min(1.0, batches_done / max(self.alpha_epochs * batches_per_epoch, 1))}

    @classmethod
    @torch.no_grad()
    def validate(cls, model: ModelT, batches: Iterable[BatchT], loss: LossT, data: DataT) -> dict[str, float]:
        """Measure the recall of retrieval by ITC; see `measure_recall`."""
        return measure_recall(model, batches)

    def contrast(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, pair_ids: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor, Memory]:
        """Return the losses of ITC and ITM, and the projection of the encoded images.

        Args:
            pixels: Images (B, 3, S, S).
            ids: Token ids (B, T), first token [CLS].
            mask: Attention mask (B, T).
            pair_ids: Ids (B,) of the pairs.
            alpha: Weight of the twin's soft targets.
        """
        model = self.model
        tokens = model.encode_image(pixels)
        features = self.features(pixels, tokens, ids, mask)
        itc = self.itc(features, pair_ids, alpha)
        memory = model.text.project(tokens)
        negatives = self.negatives(pair_ids, features)
        itm = self.itm(tokens, memory, with_first_token(ids, model.config.text.enc_id), mask, negatives)
        return itc, itm, memory

    def features(self, pixels: Tensor, tokens: Tensor, ids: Tensor, mask: Tensor) -> Features:
        """Return features of images and texts.

        In training mode it first clamps the temperature and moves the twin, as the published forward does.

        Args:
            pixels: Images (B, 3, S, S).
            tokens: The same images, encoded (B, N + 1, D_v).
            ids: Token ids (B, T), first token [CLS].
            mask: Attention mask (B, T).
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
        """Return the ITC loss; in training mode, then advance the queues.

        Args:
            features: Features of the batch.
            pair_ids: Ids (B,) of the pairs.
            alpha: Weight of the twin's soft targets.
        """
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

    @abstractmethod
    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        """Push the batch's momentum features, and in retrieval its ids, into the queues."""

    @torch.no_grad()
    def negatives(self, pair_ids: Tensor, features: Features) -> Negatives:
        """Draw a wrong image for each text, then a wrong text for each image.

        Args:
            pair_ids: Ids (B,) of the pairs.
            features: Features of the batch.
        """
        bank, floor = (features.image, features.text), self.negative_floor
        if self.negatives_by_twin:
            bank = features.image_m, features.text_m
        images, texts = (self.itm_gather(candidates.detach()) for candidates in bank)
        same = same_id(pair_ids, self.itm_gather(pair_ids))
        with torch.autocast(pair_ids.device.type, enabled=False):
            temperature = self.model.temperature.float()
            t2i = hard_negative_weights(features.text @ images.T / temperature, same, floor)
            i2t = hard_negative_weights(features.image @ texts.T / temperature, same, floor)
        return Negatives(draw_negatives(t2i, self.draw), draw_negatives(i2t, self.draw), ~same.all(1))

    def itm(self, tokens: Tensor, memory: Memory, ids: Tensor, mask: Tensor, negatives: Negatives) -> Tensor:
        """Return the ITM loss: mean cross-entropy over B matches and up to 2 B negatives.

        One pass judges every image with its own text and with a wrong text, so its keys need no copy; a second pass
        judges the wrong images. Pairs without a possible negative count as matches alone.

        Args:
            tokens: Encoded images (B, N + 1, D_v).
            memory: Projection of `tokens`.
            ids: Token ids (B, T), first token [ENC].
            mask: Attention mask (B, T).
            negatives: Wrong images and texts.
        """
        model, gather = self.model, self.itm_gather
        wrong_ids, wrong_mask = gather(ids)[negatives.texts], gather(mask)[negatives.texts]
        two_ids, two_masks = torch.stack([ids, wrong_ids], 1), torch.stack([mask, wrong_mask], 1)  # (B, 2, T)
        image_logits = model.match_logits(two_ids.flatten(0, 1), two_masks.flatten(0, 1), memory).view(-1, 2, 2)
        all_tokens = gather(tokens)
        if all_tokens is tokens:
            wrong_memory = memory.select(negatives.images)
        else:
            wrong_memory = model.text.project(all_tokens[negatives.images])
        text_logits = model.match_logits(ids, mask, wrong_memory)
        logits = torch.cat([image_logits[:, 0], image_logits[:, 1], text_logits])
        no_match = torch.where(negatives.exist, 0, IGNORED)
        labels = torch.cat([torch.ones_like(no_match), no_match, no_match])
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)


def same_id(ids: Tensor, column_ids: Tensor) -> Tensor:
    """Return which columns (B, C) have the id of each row, from `ids` (B,) and `column_ids` (C,)."""
    return ids[:, None] == column_ids[None, :]


def soft_targets(momentum_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    """Return targets (B, C): the twin's probabilities, mixed with the annotated pairs `hard`; each row sums to 1."""
    return alpha * F.softmax(momentum_logits, dim=1) + (1.0 - alpha) * hard


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy with soft targets (B, C), averaged over rows."""
    return -(F.log_softmax(logits, dim=1) * targets).sum(1).mean()


def hard_negative_weights(logits: Tensor, same: Tensor, floor: float) -> Tensor:
    """Return weights (B, C) for drawing each column as a negative.

    Args:
        logits: Similarities (B, C); a higher one is a harder negative.
        same: Columns (B, C) that must not be drawn.
        floor: Added to the softmax before the mask: 1e-4 in pretraining, as published. With 0, as in retrieval, the
            mask comes before the softmax; that gives the published odds, but a sharp temperature cannot round them
            all to 0.

    Returns:
        Weights; all 0 in a row without negatives.
    """
    if floor > 0.0:
        return (F.softmax(logits, dim=1) + floor).masked_fill(same, 0.0)
    return F.softmax(logits.masked_fill(same, -torch.inf), dim=1).masked_fill(same, 0.0)


def draw_negatives(weights: Tensor, draw: Draw) -> Tensor:
    """Draw a column (B,) for each row of weights; any column if they are all 0, as in a batch of one image."""
    return draw(torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0))
