"""NLVR2: whether a statement about two images is true (paper section 5.4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model.base import ImageTextModel
from openblip.model.config import ModelConfig
from openblip.model.text import Memory, TextTransformer


class Comparer(ImageTextModel):
    """A text encoder whose layers attend to both images, and a classifier of its first token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.text = TextTransformer(config.grounded_text)
        self.head = Classifier(config.text.width, config.classes)

    def logits(self, ids: Tensor, mask: Tensor | None, images: tuple[Tensor, Tensor] | Memory) -> Tensor:
        """Classify statements about pairs of images.

        Args:
            ids: Statements (B, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            images: States of the two images, each (I, N + 1, D_v), or their projection.

        Returns:
            Logits (B, classes); class 1 is "true".
        """
        return self.head(self.text.encode_grounded(ids, mask, images)[:, 0])


class Classifier(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) of states (B, D)."""
        return self.out(F.relu(self.dense(x)))
