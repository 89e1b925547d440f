"""Pretraining: one model that embeds, matches and describes (paper section 3.2, figure 2)."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.model.config import ModelConfig
from openblip.model.matcher import Matcher
from openblip.model.text import LanguageHead, Memory


class Pretrainer(Matcher):
    """ITC, ITM and LM over one image encoder and one text stack: a matcher that can also decode.

    Encoder and decoder share everything but self-attention, so each layer owns two of those and nothing needs tying.
    The momentum copies and queues of ITC belong to training, not to the model; the temperature is learned.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.lm_head = LanguageHead(config.text)
        temperature = self.temperature
        del self.temperature
        self.temperature = nn.Parameter(temperature)

    def logits(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Next-token logits (B, T, V) at every position of ``ids`` (B, T), which start with [DEC]."""
        return self.to_logits(self.text.decode(ids, mask, memory))

    def to_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.text.embeddings.word)
