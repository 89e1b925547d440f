"""Visual question answering: an image-grounded question encoder and an answer decoder (paper section 5.3)."""

from __future__ import annotations

from torch import Tensor

from openblip.errors import ConfigError
from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import LanguageHead, Memory, TextTransformer


class Answerer(ImageTextModel):
    """Image and question to an answer. The decoder reads the question's states, not the image; nothing is shared."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = TextTransformer(config.grounded_text)
        self.decoder = TextTransformer(config.answer_decoder)
        self.lm_head = LanguageHead(config.text)

    def encode_question(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Question states (B, T, D), which the answer decoder reads; ``ids`` start with [ENC].

        Raises :class:`ConfigError` if the answer decoder was built for states of another width.
        """
        if (width := self.decoder.config.memory_width) != self.config.text.width:
            raise ConfigError(
                f"this answer decoder reads states {width} wide, but question states have {self.config.text.width}: "
                "leave decoder_memory_width at the text width"
            )
        return self.encoder.encode_grounded(ids, mask, memory)

    def logits(
        self, ids: Tensor, mask: Tensor | None, states: Tensor | Memory, states_mask: Tensor | None = None
    ) -> Tensor:
        """Next-token logits (B, T, V) of answers ``ids`` (B, T), which start with [DEC], after question states."""
        return self.to_logits(self.decoder.decode(ids, mask, states, states_mask))

    def to_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)
