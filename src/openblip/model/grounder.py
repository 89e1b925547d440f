"""Visual grounding: find the box that an expression names, written as four coordinate tokens.

After mmpretrain's RefCOCO model; the paper has no such task. A box is (centre x, centre y, width, height) over the
image size, each number one of ``box_bins + 1`` bins; bin b is token ``box_start_id + 1 + b``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.layers import Trace
from openblip.model.text import LanguageHead, Memory, TextTransformer


class Grounder(ImageTextModel):
    """Text encoder, fusion encoder over text states and image, and a decoder of coordinates; nothing is shared."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text)
        self.fusion = TextTransformer(config.grounded_text)
        self.decoder = TextTransformer(config.grounded_text)
        self.lm_head = LanguageHead(config.text)

    def fuse(self, ids: Tensor, mask: Tensor, image: Tensor, *, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        """What the decoder reads: image tokens, then fused text states (B, N + 1 + T, D), and their mask.

        ``ids`` (B, T) start with [CLS], as that model was trained. ``trace`` follows the fusion encoder.
        """
        text = self.text.encode(ids, mask)
        fused = self.fusion.encode_embedded(text, mask, image, trace=trace)
        seen = torch.ones(image.shape[:2], dtype=mask.dtype, device=mask.device)
        return torch.cat([image, fused], dim=1), torch.cat([seen, mask], dim=1)

    def logits(self, ids: Tensor, states: Tensor | Memory, states_mask: Tensor | None = None) -> Tensor:
        """Next-token logits (B, T, V) after ``ids`` (B, T), which start with ``box_start_id``."""
        return self.to_logits(self.decoder.decode(ids, None, states, states_mask))

    def to_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)

    def box_ids(self, device: torch.device | None = None) -> Tensor:
        """The ids (box_bins + 1,) of the coordinate tokens, in the order of their bins."""
        first = self.config.box_start_id + 1
        return torch.arange(first, first + self.config.box_bins + 1, device=device)
