"""VisDial: whether an answer to a question is true, given image, caption and previous rounds (paper section 5.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from openblip.data.tasks.visdial import VisdialData
from openblip.model.matcher import Matcher
from openblip.training.config.loss import VisdialLoss
from openblip.training.objectives.base import Batch, ImageBatch, Objective
from openblip.training.objectives.gather import Gather


@dataclass(frozen=True, kw_only=True)
class VisdialBatch(ImageBatch):
    """D dialogs about I captioned images, D / I per image, in order of images.

    Attributes:
        pixels: Images (I, 3, S, S).
        caption_ids: Token ids (I, T') of the captions, first token [CLS].
        caption_mask: Attention mask (I, T').
        ids: Token ids (D, T) of the dialogs up to an answer, first token [ENC].
        mask: Attention mask (D, T).
        labels: 1 for a dialog that ends with the true answer, else 0 (D,).
    """

    caption_ids: Tensor
    caption_mask: Tensor
    labels: Tensor


class VisdialObjective(Objective[Matcher, VisdialBatch, VisdialLoss, VisdialData]):
    """ITM: mean cross-entropy over the two classes."""

    batch_class: ClassVar[type[Batch]] = VisdialBatch
    has_unused_parameters: ClassVar[bool] = True  # the projections of ITC

    @classmethod
    def from_settings(cls, model: Matcher, loss: VisdialLoss, data: VisdialData, gather: Gather) -> VisdialObjective:
        """Build the objective from a recipe's loss options."""
        return cls(model)

    def forward(self, batch: VisdialBatch) -> dict[str, Tensor]:
        """Return the loss `itm` of one batch."""
        return {"itm": F.cross_entropy(self.logits(batch).float(), batch.labels)}

    def logits(self, batch: VisdialBatch) -> Tensor:
        """Return logits (D, 2); column 1 means that the answer is true."""
        tokens = self.model.encode_image(batch.pixels)
        memory = self.model.project_captioned(tokens, batch.caption_ids, batch.caption_mask)
        return self.model.match_logits(batch.ids, batch.mask, memory)

    def correct(self, batch: VisdialBatch) -> Tensor:
        """Return which answers (D,), true and wrong ones, are judged correctly."""
        return self.logits(batch).argmax(-1) == batch.labels
