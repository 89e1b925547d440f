"""NLVR2: whether a statement about two images is true (paper section 5.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.data.tasks.nlvr import NlvrData
from openblip.model.comparer import Comparer
from openblip.training.config.loss import NlvrLoss
from openblip.training.objectives.base import Batch, Objective
from openblip.training.objectives.gather import Gather


@dataclass(frozen=True, kw_only=True)
class NlvrBatch(Batch):
    """B statements, each about two images.

    Attributes:
        left_pixels: Left images (B, 3, S, S).
        right_pixels: Right images (B, 3, S, S).
        ids: Token ids (B, T) of the statements, first token [ENC].
        mask: Attention mask (B, T).
        labels: 1 for a true statement, 0 for a false one (B,).
    """

    left_pixels: Tensor
    right_pixels: Tensor
    labels: Tensor

    @property
    def num_images(self) -> int:
        """Number of images that the batch encodes."""
        return 2 * len(self.left_pixels)


class NlvrObjective(Objective[Comparer, NlvrBatch, NlvrLoss, NlvrData]):
    """Mean cross-entropy over the two classes."""

    batch_class: ClassVar[type[Batch]] = NlvrBatch

    @classmethod
    def from_settings(cls, model: Comparer, loss: NlvrLoss, data: NlvrData, gather: Gather) -> NlvrObjective:
        """Build the objective from a recipe's loss options."""
        return cls(model)

    def forward(self, batch: NlvrBatch) -> dict[str, Tensor]:
        """Return the loss `nlvr` of one batch."""
        return {"nlvr": F.cross_entropy(self.logits(batch).float(), batch.labels)}

    def logits(self, batch: NlvrBatch) -> Tensor:
        """Return logits (B, 2); column 1 means that the statement is true."""
        pair = self.model.encode_image(torch.cat([batch.left_pixels, batch.right_pixels])).chunk(2)
        return self.model.logits(batch.ids, batch.mask, (pair[0], pair[1]))

    def correct(self, batch: NlvrBatch) -> Tensor:
        """Return which statements (B,) are judged correctly."""
        return self.logits(batch).argmax(-1) == batch.labels
