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
    """One text transformer that embeds a text alone (ITC) and judges it against an image (ITM).

    ``temperature`` is the ITC temperature the weights were trained with: a buffer here, as nothing but training and
    zero-shot classification uses it.
    """

    temperature: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_width)
        self.text_proj = nn.Linear(config.text.width, config.embed_width)
        self.itm_head = nn.Linear(config.text.width, 2)
        self.register_buffer("temperature", torch.tensor(0.07))

    def embed_image(self, tokens: Tensor) -> Tensor:
        """L2-normalised embeddings (B, E) of image tokens (B, N + 1, D_v), read off the class token."""
        return F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def embed_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """L2-normalised embeddings (B, E) of texts (B, T), which start with [CLS]."""
        return F.normalize(self.text_proj(self.text.encode(ids, mask)[:, 0]), dim=-1)

    def read_captioned(self, tokens: Tensor, ids: Tensor, mask: Tensor) -> Memory:
        """What a dialog reads of images (I, N + 1, D_v) and of their captions (I, T), which start with [CLS].

        Both, encoded apart, lie side by side in cross-attention (paper section 5.5); how it encodes captions the paper
        does not say. Raises :class:`ConfigError` if images and texts are not of one width.
        """
        if self.config.vision.width != self.config.text.width:
            raise ConfigError(
                "picture and caption are read side by side, so both must have one width, not "
                f"{self.config.vision.width} and {self.config.text.width}"
            )
        return self.text.project(tokens).before(self.text.project(self.text.encode(ids, mask), mask))

    def match_logits(self, ids: Tensor, mask: Tensor | None, memory: Tensor | Memory) -> Tensor:
        """ITM logits (B, 2) of texts (B, T), which start with [ENC]; column 1 means that text and image match."""
        return self.itm_head(self.text.encode_grounded(ids, mask, memory)[:, 0])
