"""Image-text retrieval and matching: the ITC embedding space and the ITM classifier (paper sections 3.2 and 5.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import ConfigError
from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import Memory, TextTransformer


class Matcher(ImageTextModel):
    """Embeds images and texts (ITC), and classifies whether image and text match (ITM), with one text transformer.

    Attributes:
        temperature: Temperature of ITC in training. A buffer, because only training and zero-shot classification use
            it.
    """

    temperature: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_width)
        self.text_proj = nn.Linear(config.text.width, config.embed_width)
        self.itm_head = nn.Linear(config.text.width, 2)
        self.register_buffer("temperature", torch.tensor(0.07))

    def embed_image(self, states: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (B, E) of the class tokens of image states (B, N + 1, D_v)."""
        return F.normalize(self.vision_proj(states[:, 0]), dim=-1)

    def embed_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return the L2-normalized embeddings (B, E) of texts (B, T), whose first token is [CLS]."""
        return F.normalize(self.text_proj(self.text.encode(ids, mask)[:, 0]), dim=-1)

    def project_captioned(self, states: Tensor, ids: Tensor, mask: Tensor) -> Memory:
        """Project images and their captions to one memory, for dialogs about the images (paper section 5.5).

        The captions are encoded as text alone; the paper does not say how it encodes them.

        Args:
            states: Image states (I, N + 1, D_v).
            ids: Captions (I, T), the first token [CLS].
            mask: 1 for tokens, 0 for padding (I, T).

        Returns:
            Cross-attention keys and values of the image tokens, followed by the keys and values of the caption.

        Raises:
            ConfigError: Images and texts have different widths.
        """
        if self.config.vision.width != self.config.text.width:
            raise ConfigError(
                "image and text must have the same width, to be concatenated for dialogs, "
                f"got {self.config.vision.width} and {self.config.text.width}"
            )
        return self.text.project(states).concatenate(self.text.project(self.text.encode(ids, mask), mask))

    def match_logits(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """Classify whether texts match images.

        Args:
            ids: Texts (B, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            memory: Image states (I, N + 1, D_v), or their projection.

        Returns:
            ITM logits (B, 2); column 1 is "match".
        """
        return self.itm_head(self.text.encode_grounded(ids, mask, memory)[:, 0])
