"""Images from any source, and the tensor that BLIP was trained on.

Preprocessing has three steps, so that a caller can run each on its own thread or device: `load_image` (decode, orient,
convert to RGB), `resize` (to the square of the model, uint8) and `to_tensor` (normalized float32). The result equals
the evaluation transform of the original: PIL's bicubic filter to exactly S x S without keeping the aspect ratio, then
(x / 255 - mean) / std.

Shapes: B images, S side of the model's square in pixels, H and W height and width of an image.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openblip.errors import InputError
from openblip.preprocess.files import FILE_SIZE, decode_image, read_file_object, read_path, wrap_errors
from openblip.preprocess.limits import BUDGET, DecodeLimits
from openblip.preprocess.pixels import convert_array, convert_tensor, to_upright_rgb
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.web import download

if TYPE_CHECKING:
    from torch import Tensor

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any] | Tensor
    )
else:
    ImageSource: TypeAlias = Any

Pixels: TypeAlias = NDArray[np.uint8]

__all__ = [
    "DecodeLimits",
    "ImageSettings",
    "ImageSource",
    "Pixels",
    "load_image",
    "load_resized",
    "original_size",
    "resize",
    "to_tensor",
]


def load_image(
    source: ImageSource, *, target_size: int | None = None, limits: DecodeLimits | None = None
) -> Image.Image:
    """Load an image, apply its orientation, and convert it to RGB.

    Transparent pixels become white; a channel that makes every pixel transparent is ignored. The first frame of an
    animation or page of a document is loaded; a PIL image keeps its current frame. 16-bit gray is scaled from its full
    range. 32-bit and floating-point gray do not declare a white level: they are scaled from the first of the ranges 0
    to 1 (floating-point only), 0 to 255, 0 to 65535 and 0 to 2^32 - 1 that contains all values, otherwise from their
    minimum and maximum. In a PFM, 1 is white, or the brightest value if that is more.

    Args:
        source: One of

            - a path or an `https` address (limits: `openblip.preprocess.web`)
            - the bytes of a file
            - a binary file object, read from its position, or from the start if it is at its end
            - a PIL image; an upright RGB image is returned as it is
            - a uint8 array (H, W, 3), (H, W), (H, W, 1) or (H, W, 4): RGB, gray, gray, RGBA
            - a tensor (3, H, W), (H, W), (1, H, W) or (4, H, W), uint8 or floating-point from 0 to 1
        target_size: Side of the square that the image will be resized to. A JPEG file of more than twice this size is
            then decoded at 1/2, 1/4 or 1/8 of its size, but at least at twice the target. Decoding is several times as
            fast, and the resized image differs by a fraction of a gray level on average.

    Returns:
        An RGB image, in its own size unless `target_size` allowed a smaller one.

    Raises:
        ImageError: The image cannot be read or fetched, or is too large. The message names the source and the reason.
        InputError: The argument has a wrong type, shape or value range.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or f"a PIL image {source.size}"
        with wrap_errors(name):
            return to_upright_rgb(source)
    if isinstance(source, np.ndarray):
        return convert_array(source)
    if "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor):
        return convert_tensor(source)
    if isinstance(source, str) and "://" in source:
        return decode_image(io.BytesIO(download(source)), source, target_size, limits)
    if isinstance(source, (str, os.PathLike)):
        return read_path(Path(os.fsdecode(source)), target_size, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return decode_image(io.BytesIO(data), f"{len(data)} bytes", target_size, limits)
    if hasattr(source, "read"):
        return read_file_object(source, target_size, limits)
    raise InputError(
        "an image must be a path, an https address, bytes, a binary file object, a PIL image, an array or a tensor, "
        f"got {type(source).__name__}"
    )


def load_resized(source: ImageSource, size: int, *, target_size: int | None = None) -> tuple[Pixels, tuple[int, int]]:
    """Load an image and resize it. Large images wait for each other, so that their memory stays within a budget.

    Args:
        source: See [`load_image`][openblip.preprocess.image.load_image].
        size: Side of the square in pixels.
        target_size: See [`load_image`][openblip.preprocess.image.load_image].

    Returns:
        Pixels (S, S, 3), and width and height of the image in its file.

    Raises:
        ImageError: The image cannot be read.
        InputError: The argument has a wrong type, shape or value range.
    """
    with BUDGET.keep():
        image = load_image(source, target_size=target_size)
        return resize(image, size), original_size(image)


def original_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image from `load_image` in its file, even if it was decoded at a smaller size."""
    return cast("tuple[int, int]", image.info.get(FILE_SIZE, image.size))


def resize(image: Image.Image, size: int) -> Pixels:
    """Resize an RGB image to a square, as in training: bicubic with antialiasing, without keeping the aspect ratio.

    Pillow rounds to bytes between its pass over rows and its pass over columns. Before version 13 the rows came first;
    now the order depends on the sizes, which changes single pixels of tall images by a few gray levels.

    Args:
        image: An RGB image.
        size: Side of the square in pixels.

    Returns:
        Pixels (S, S, 3).
    """
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def to_tensor(batch: Pixels | Tensor, settings: ImageSettings) -> Tensor:
    """Normalize a batch of images.

    Args:
        batch: uint8 pixels (B, S, S, 3), an array or a tensor on any device.
        settings: Mean and standard deviation.

    Returns:
        Pixels (B, 3, S, S), float32, on the device of `batch`.

    Raises:
        InputError: The batch has another type or shape.
    """
    import torch

    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
        raise InputError(f"images must be uint8 (B, S, S, 3), got {batch.dtype} {tuple(batch.shape)}")
    mean = torch.tensor(settings.mean, device=batch.device).view(3, 1, 1)
    std = torch.tensor(settings.std, device=batch.device).view(3, 1, 1)
    pixels = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(mean).div_(std)
