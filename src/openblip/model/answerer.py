"""Visual question answering: an image-grounded question encoder and an answer decoder (paper section 5.3)."""

from __future__ import annotations

from torch import Tensor

from openblip.errors import ConfigError
from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import LanguageHead, Memory, TextTransformer


class Answerer(ImageTextModel):
    """Generates the answer to a question about an image.

    The decoder attends to the states of the question, not to the image. Encoder and decoder share no weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = TextTransformer(config.grounded_text)
        self.decoder = TextTransformer(config.answer_decoder)
        self.lm_head = LanguageHead(config.text)

    def encode_question(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Encode questions about images.

        Args:
            ids: Questions (B, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            memory: Image states (I, N + 1, D_v), or their projection.

        Returns:
            Question states (B, T, D), the memory of the answer decoder.

        Raises:
            ConfigError: The answer decoder was built for states of another width.
        """
        width = self.decoder.config.memory_width
        if width != self.config.text.width:
            raise ConfigError(
                f"decoder_memory_width must be the text width {self.config.text.width}, got {width}: the answer "
                "decoder cannot attend to question states"
            )
        return self.encoder.encode_grounded(ids, mask, memory)

    def logits(
        self, ids: Tensor, mask: Tensor | None, states: Tensor | Memory, states_mask: Tensor | None = None
    ) -> Tensor:
        """Compute the logits of the next token at every position of answers.

        Args:
            ids: Answers (B, T'), the first token [DEC].
            mask: 1 for tokens, 0 for padding (B, T'); `None` if there is no padding.
            states: Question states (I, T, D), or their projection.
            states_mask: 1 for tokens, 0 for padding of the questions (I, T).

        Returns:
            Logits (B, T', V).
        """
        return self.to_logits(self.decoder.decode(ids, mask, states, states_mask))

    def to_logits(self, states: Tensor) -> Tensor:
        """Return the logits (..., V) of decoder states (..., D)."""
        return self.lm_head(states, self.decoder.embeddings.word)
