"""NLVR2: whether a statement about two images is true (paper section 5.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model.comparer import Comparer


@dataclass(frozen=True, kw_only=True)
class ComparingBatch:
    """B statements, each about a ``first`` and a ``second`` image.

    Images (B, 3, S, S); ``ids`` and ``mask`` (B, T), first token [ENC]; ``targets`` (B,), 1 where it is true.
    """

    first: Tensor
    second: Tensor
    ids: Tensor
    mask: Tensor
    targets: Tensor


class Comparing(nn.Module):
    """Mean cross-entropy over the classes."""

    def __init__(self, model: Comparer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ComparingBatch) -> dict[str, Tensor]:
        """The loss ``nlvr`` of one batch."""
        first, second = self.model.encode_image(torch.cat([batch.first, batch.second])).chunk(2)
        logits = self.model.logits(batch.ids, batch.mask, (first, second))
        return {"nlvr": F.cross_entropy(logits.float(), batch.targets)}
