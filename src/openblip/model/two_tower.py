"""The two-tower model of the ``transformers`` API (its ``BlipModel``), which no published BLIP checkpoint fills.

Its projections, pooler and logit scale exist in no BLIP file; for embeddings that were trained use :class:`Matcher`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import TextTransformer


class TwoTower(ImageTextModel):
    """Image and text encoders with bias-free projections to one space, compared as CLIP does."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text, pooler=True)
        self.visual_projection = nn.Linear(config.vision.width, config.embed_width, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.embed_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Projected class tokens (B, E), not normalised; the final norm is applied twice, as that library does."""
        return self.visual_projection(self.vision.norm(tokens[:, 0]))

    def embed_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Projected pooled texts (B, E), not normalised."""
        return self.text_projection(self.text.pool(self.text.encode(ids, mask)))
