"""Base class of the models with an image encoder."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.model.config import ModelConfig
from openblip.model.vision import VisionTransformer


class ImageTextModel(nn.Module):
    """A model that pairs the image encoder with text.

    Args:
        config: Configuration of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)

    def encode_image(self, pixels: Tensor, *, any_size: bool = False) -> Tensor:
        """Encode a batch of images.

        Args:
            pixels: Normalized pixels (B, 3, S, S).
            any_size: Whether to allow other image sizes, with interpolated position embeddings.

        Returns:
            Image states (B, N + 1, D_v), class token first.

        Raises:
            InputError: The images have another size than the configured one, without `any_size`.
        """
        return self.vision(pixels, any_size=any_size)
