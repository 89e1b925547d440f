"""Types of the inputs: images as users pass them, encoded images, and small copies of images for drawings."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openblip.preprocess.image import ImageSource, load_image
from openblip.preprocess.video import Video

_PREVIEW_SIZE = 256  # pixels: previews of images in memory are at most this wide and high


@dataclass(eq=False)
class EncodedImage:
    """An image or video after the image encoder, made by `Blip.encode_images`.

    Every method that takes an image takes an encoded image too, and then skips the image encoder.

    Attributes:
        states: States (M, D) of an image or (F, M, D) of a video's frames, by the id of the engine that computed them.
        size: Width and height of the image in pixels, needed for boxes in pixels.
        preview: Loads a copy of the image, for drawings.
    """

    states: dict[int, Tensor] = field(repr=False)
    size: tuple[int, int] | None = None
    preview: ImagePreview | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class ImagePreview:
    """A picture of an image for drawings: its path or, if it was in memory, a copy of at most 256 x 256 pixels."""

    source: str | os.PathLike[str] | NDArray[np.uint8] = field(repr=False)
    size: tuple[int, int]

    @staticmethod
    def of(source: ImageSource, pixels: NDArray[np.uint8], size: tuple[int, int]) -> ImagePreview:
        """Return the preview of an image of `size` pixels, resized to `pixels` (S, S, 3) for the model."""
        if isinstance(source, str | os.PathLike):
            return ImagePreview(source, size)
        step = math.ceil(len(pixels) / _PREVIEW_SIZE)
        return ImagePreview(pixels[::step, ::step].copy(), size)

    def __call__(self) -> Image.Image:
        """Return the image in its own size; raise `ImageError` if its file is no longer readable."""
        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source).resize(self.size)
        return load_image(self.source)


ImageInput: TypeAlias = ImageSource | Video | EncodedImage
"""One image: a path, bytes, a file object, a PIL image, an array (H, W, 3) of uint8 RGB, a tensor (3, H, W) of uint8
or of floats from 0 to 1, an `https` address, a video, or an `EncodedImage`."""
