"""Visual grounding: the box of an expression, generated as four coordinate tokens.

The model is mmpretrain's RefCOCO model; the paper has no such task. A box is (center x, center y, width, height) as
fractions of the image size, each quantized to one of `box_bins + 1` bins. Bin b is the token `box_start_id + 1 + b`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.layers import Trace
from openblip.model.text import LanguageHead, Memory, TextTransformer


class Grounder(ImageTextModel):
    """A text encoder, a fusion encoder over text states and image, and a coordinate decoder. They share no weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text)
        self.fusion = TextTransformer(config.grounded_text)
        self.decoder = TextTransformer(config.grounded_text)
        self.lm_head = LanguageHead(config.text)

    def fuse(self, ids: Tensor, mask: Tensor, image: Tensor | Memory, *, trace: Trace | None = None) -> Tensor:
        """Encode expressions together with images.

        Args:
            ids: Expressions (B, T), the first token [CLS], as in training.
            mask: 1 for tokens, 0 for padding (B, T).
            image: Image states (I, N + 1, D_v), or their projection.
            trace: Records the fusion encoder.

        Returns:
            Fused text states (B, T, D).
        """
        return self.fusion.encode_embedded(self.text.encode(ids, mask), mask, image, trace=trace)

    def make_memory(
        self,
        ids: Tensor,
        mask: Tensor,
        image: Tensor,
        image_index: Tensor | None = None,
        *,
        trace: Trace | None = None,
    ) -> Memory:
        """Make the memory of the decoder: image tokens followed by fused text states.

        Each image is projected once for all of its expressions.

        Args:
            ids: Expressions (B, T), the first token [CLS].
            mask: 1 for tokens, 0 for padding (B, T).
            image: Image states (I, N + 1, D_v).
            image_index: Image of each expression (B,). By default, the B / I expressions of an image are adjacent.
            trace: Records the fusion encoder.

        Returns:
            Cross-attention keys and values (B items).
        """
        fusion_memory, decoder_memory = self.fusion.project(image), self.decoder.project(image)
        if image_index is not None:
            fusion_memory, decoder_memory = fusion_memory.select(image_index), decoder_memory.select(image_index)
        fused = self.fuse(ids, mask, fusion_memory, trace=trace)
        return decoder_memory.concatenate(self.decoder.project(fused, mask))

    def logits(self, ids: Tensor, memory: Tensor | Memory) -> Tensor:
        """Return the logits (B, T, V) of the next token at every position of ids (B, T) that start a box."""
        return self.to_logits(self.decoder.decode(ids, None, memory))

    def to_logits(self, states: Tensor) -> Tensor:
        """Return the logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)

    def box_ids(self, device: torch.device | None = None) -> Tensor:
        """Return the ids (box_bins + 1,) of the coordinate tokens, in the order of their bins."""
        start = self.config.box_start_id + 1
        return torch.arange(start, start + self.config.box_bins + 1, device=device)
