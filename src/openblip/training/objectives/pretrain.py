"""Pretraining: ITC, ITM and LM with equal weights (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from openblip.data.tasks.pretrain import PretrainData
from openblip.model.pretrainer import Pretrainer
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TaskName
from openblip.training.config.loss import PretrainLoss
from openblip.training.objectives.base import Batch, ImageBatch, PreviewImage, generate_captions
from openblip.training.objectives.contrastive import ContrastiveObjective, Features
from openblip.training.objectives.gather import Gather, Scope
from openblip.training.objectives.language import lm_loss, lm_targets, with_first_token


@dataclass(frozen=True, kw_only=True)
class PretrainBatch(ImageBatch):
    """B images and their texts.

    Attributes:
        pixels: Images (B, 3, S, S).
        ids: Token ids (B, T) of one text per image for ITC and ITM, first token [CLS].
        mask: Attention mask (B, T).
        lm_ids: Token ids (B * n, T') of n texts per image for LM, first token [DEC], in order of images; by default
            the texts of `ids`.
        lm_mask: Attention mask (B * n, T').
    """

    lm_ids: Tensor | None = None
    lm_mask: Tensor | None = None


class PretrainObjective(ContrastiveObjective[Pretrainer, PretrainBatch, PretrainLoss, PretrainData]):
    """The three losses, with momentum twin and queues.

    Args:
        model: The model to pretrain.
        smoothing: Label smoothing of LM.
        token_mean: Average LM over the tokens of this process ("rank", as published: texts of processes with fewer
            tokens weigh more) or of all processes.
        **options: Options of `ContrastiveObjective`.
    """

    batch_class: ClassVar[type[Batch]] = PretrainBatch
    validation_task: ClassVar[TaskName | None] = "retrieval"  # whose batches know the texts of an image
    has_previews: ClassVar[bool] = True
    negatives_by_twin: ClassVar[bool] = True
    negative_floor: ClassVar[float] = 1e-4

    def __init__(
        self, model: Pretrainer, *, smoothing: float = 0.1, token_mean: Scope = "rank", **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.smoothing = smoothing
        self.lm_gather = self.gather if token_mean == "all" else Gather()

    @classmethod
    def from_settings(
        cls, model: Pretrainer, loss: PretrainLoss, data: PretrainData, gather: Gather
    ) -> PretrainObjective:
        """Build the objective from a recipe's loss options."""
        return cls(
            model,
            smoothing=loss.smoothing,
            token_mean=loss.token_mean,
            **cls.options(loss, gather),
        )

    def forward(self, batch: PretrainBatch, alpha: float = 0.4) -> dict[str, Tensor]:
        """Return the losses `itc`, `itm` and `lm` of one batch.

        In training mode a call clamps the temperature to [0.001, 0.5], moves the twin and advances the queues.

        Args:
            batch: Images and texts.
            alpha: Weight of the momentum targets.
        """
        model, pair_ids = self.model, self.gather.own_indices(batch.ids)
        # Encoder and decoder share their cross-attention, so the image is projected once for ITM and LM.
        itc, itm, memory = self.contrast(batch.pixels, batch.ids, batch.mask, pair_ids, alpha)
        lm_ids, lm_mask = batch.lm_ids, batch.lm_mask
        if lm_ids is None or lm_mask is None:
            lm_ids, lm_mask = with_first_token(batch.ids, model.config.text.dec_id), batch.mask
        states = model.text.decode(lm_ids, lm_mask, memory)
        labels = lm_targets(lm_ids, lm_mask)
        lm = lm_loss(states, labels, model.to_logits, self.smoothing, gather=self.lm_gather)
        return {"itc": itc, "itm": itm, "lm": lm}

    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        """Push the momentum features of a batch into the queues."""
        self.queue.push(self.gather(features.image_m), self.gather(features.text_m))

    @classmethod
    def describe(
        cls, model: Pretrainer, tokenizer: Tokenizer, images: Sequence[PreviewImage], prompt: str
    ) -> list[Mapping[str, str]]:
        """Caption each image."""
        pixels = torch.stack([image.pixels for image in images])
        captions = generate_captions(model, model.text, tokenizer, pixels, prompt)
        return [{"image": image.name, "caption": caption} for image, caption in zip(images, captions, strict=True)]
