"""Captioning: the image encoder and a decoder that reads its tokens (paper section 5.2)."""

from __future__ import annotations

from torch import Tensor

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import LanguageHead, Memory, TextTransformer


class Captioner(ImageTextModel):
    """Image to text, word by word."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.decoder = TextTransformer(config.grounded_text)
        self.lm_head = LanguageHead(config.text)

    def logits(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Next-token logits (B, T, V) at every position of ``ids`` (B, T), which start with [DEC]."""
        return self.to_logits(self.decoder.decode(ids, mask, memory))

    def to_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)
