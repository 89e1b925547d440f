"""What every model of the house has: a configuration and an image encoder."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.model.config import ModelConfig
from openblip.model.vision import VisionTransformer


class ImageTextModel(nn.Module):
    """Base of the models that pair the image encoder with text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)

    def encode_image(self, pixels: Tensor, *, any_size: bool = False) -> Tensor:
        """Image tokens (B, N + 1, D_v) of normalised pixels (B, 3, S, S); see :class:`VisionTransformer`."""
        return self.vision(pixels, any_size=any_size)
