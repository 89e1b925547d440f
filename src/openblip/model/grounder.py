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

    def fuse(self, ids: Tensor, mask: Tensor, image: Tensor | Memory, *, trace: Trace | None = None) -> Tensor:
        """Text states (B, T, D) that have seen the image; ``ids`` (B, T) start with [CLS], as it was trained."""
        return self.fusion.encode_embedded(self.text.encode(ids, mask), mask, image, trace=trace)

    def read(
        self, ids: Tensor, mask: Tensor, image: Tensor, owner: Tensor | None = None, *, trace: Trace | None = None
    ) -> Memory:
        """What the decoder reads: the tokens (I, N + 1, D_v) of images, then fused text states.

        Each image is projected once for all its expressions. ``owner`` (B,) is the image of each; without it an image's
        B / I expressions lie side by side. ``trace`` follows the fusion encoder.
        """
        images, seen = self.fusion.project(image), self.decoder.project(image)
        if owner is not None:
            images, seen = images.select(owner), seen.select(owner)
        return seen.before(self.decoder.project(self.fuse(ids, mask, images, trace=trace), mask))

    def logits(self, ids: Tensor, memory: Tensor | Memory) -> Tensor:
        """Next-token logits (B, T, V) after ``ids`` (B, T), which start with ``box_start_id``."""
        return self.to_logits(self.decoder.decode(ids, None, memory))

    def to_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)

    def box_ids(self, device: torch.device | None = None) -> Tensor:
        """The ids (box_bins + 1,) of the coordinate tokens, in the order of their bins."""
        first = self.config.box_start_id + 1
        return torch.arange(first, first + self.config.box_bins + 1, device=device)
