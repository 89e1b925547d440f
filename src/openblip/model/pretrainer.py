"""Pretraining: one model that embeds, matches and generates (paper section 3.2, figure 2)."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.model.config import ModelConfig
from openblip.model.matcher import Matcher
from openblip.model.text import LanguageHead, Memory


class Pretrainer(Matcher):
    """A matcher that also decodes: ITC, ITM and LM over one image encoder and one text transformer.

    Encoder and decoder share all weights except self-attention: each layer has two self-attentions, so there is nothing
    to tie. Momentum encoders and queues of ITC belong to training, not to the model. The temperature is learned.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.lm_head = LanguageHead(config.text)
        temperature = self.temperature
        del self.temperature
        self.temperature = nn.Parameter(temperature)

    def logits(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Compute the logits of the next token at every position.

        Args:
            ids: Token ids (B, T), the first token [DEC].
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            memory: Image states (I, N + 1, D_v), or their projection.

        Returns:
            Logits (B, T, V).
        """
        return self.to_logits(self.text.decode(ids, mask, memory))

    def to_logits(self, states: Tensor) -> Tensor:
        """Return the logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.text.embeddings.word)
