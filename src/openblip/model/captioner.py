"""Captioning: the image encoder and an image-grounded text decoder (paper section 5.2)."""

from __future__ import annotations

from torch import Tensor

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import LanguageHead, Memory, TextTransformer


class Captioner(ImageTextModel):
    """Generates the text of an image token by token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.decoder = TextTransformer(config.grounded_text)
        self.lm_head = LanguageHead(config.text)

    def logits(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Compute the logits of the next token at every position.

        Args:
            ids: Token ids (B, T), the first token [DEC].
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            memory: Image states (I, N + 1, D_v), or their projection.

        Returns:
            Logits (B, T, V).
        """
        return self.to_logits(self.decoder.decode(ids, mask, memory))

    def to_logits(self, states: Tensor) -> Tensor:
        """Return the logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)
