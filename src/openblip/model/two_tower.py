"""The two-tower model of the transformers API (`BlipModel`).

No published BLIP checkpoint has weights for its projections, pooler and logit scale. For trained embeddings use
[`Matcher`][openblip.model.matcher.Matcher].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import TextTransformer


class TwoTower(ImageTextModel):
    """Image and text encoders with projections to one embedding space, as in CLIP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text, pooler=True)
        self.visual_projection = nn.Linear(config.vision.width, config.embed_width, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.embed_width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))

    def embed_image(self, states: Tensor) -> Tensor:
        """Return the embeddings (B, E) of image states (B, N + 1, D_v), not normalized.

        The final norm of the encoder is applied a second time, as in transformers.
        """
        return self.visual_projection(self.vision.norm(states[:, 0]))

    def embed_text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return the embeddings (B, E) of texts (B, T), not normalized."""
        return self.text_projection(self.text.pool(self.text.encode(ids, mask)))
