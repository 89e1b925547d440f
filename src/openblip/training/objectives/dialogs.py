"""VisDial: whether an answer to a question is true, by picture, caption and the rounds before (paper section 5.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model.matcher import Matcher


@dataclass(frozen=True, kw_only=True)
class DialogBatch:
    """D dialogs about I captioned images, D / I of each, side by side.

    ``pixels`` (I, 3, S, S); ``caption_ids`` and ``caption_mask`` (I, T'), first token [CLS]; ``ids`` and ``mask``
    (D, T), the dialog up to an answer, first token [ENC]; ``targets`` (D,), 1 where that answer is the true one.
    """

    pixels: Tensor
    caption_ids: Tensor
    caption_mask: Tensor
    ids: Tensor
    mask: Tensor
    targets: Tensor


class Dialogs(nn.Module):
    """ITM: mean cross-entropy over the two classes."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: DialogBatch) -> dict[str, Tensor]:
        """The loss ``itm`` of one batch."""
        return {"itm": F.cross_entropy(dialog_logits(self.model, batch).float(), batch.targets)}


def dialog_logits(model: Matcher, batch: DialogBatch) -> Tensor:
    """Logits (D, 2); column 1 means that the answer is true."""
    memory = model.read_captioned(model.encode_image(batch.pixels), batch.caption_ids, batch.caption_mask)
    return model.match_logits(batch.ids, batch.mask, memory)
