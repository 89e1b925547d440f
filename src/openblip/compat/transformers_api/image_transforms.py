"""The steps of `BlipImageProcessor` on pixels, as `transformers` computes them.

Shapes: C channels, H height, W width; images are (C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from openblip.compat.transformers_api.tensors import to_array
from openblip.errors import InputError

Pixels: TypeAlias = np.ndarray[Any, Any]
Size: TypeAlias = dict[str, int]


def to_channels_first(image: Any, to_rgb: bool | None, layout: str | None) -> Pixels:
    """Return the pixels (C, H, W) of a PIL image, or of an array in `layout`, "channels_first" or "channels_last".

    Raises:
        InputError: The layout is neither given nor clear from the number of channels.
    """
    if isinstance(image, Image.Image):
        array = np.array(image_to_rgb(image) if to_rgb else image)
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    array = to_array(image)
    if layout is None and array.shape[0] not in (1, 3, 4):
        if array.shape[-1] not in (1, 3, 4):
            raise InputError(f"an image must have 1, 3 or 4 channels, got {array.shape}: set input_data_format")
        layout = "channels_last"
    if layout == "channels_last":
        array = np.moveaxis(array, -1, 0)
    return array_to_rgb(array) if to_rgb else array


def image_to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. Transparent pixels become white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def array_to_rgb(array: Pixels) -> Pixels:
    """Convert an array (C, H, W) to RGB. Transparent pixels become white."""
    if len(array) == 1:
        return np.repeat(array, 3, axis=0)
    if len(array) != 4:
        return array
    is_integer = np.issubdtype(array.dtype, np.integer)
    if not is_integer and (array.min() < 0 or array.max() > 1):
        raise InputError(f"values of a float RGBA image must be between 0 and 1, got {array.min()} to {array.max()}")
    white = 255 if is_integer else 1.0
    alpha = array[3:] / white
    blended = alpha * array[:3] + (1 - alpha) * white
    return (np.round(blended) if is_integer else blended).astype(array.dtype)


def target_size(shape: Sequence[int], size: Size) -> tuple[int, int]:
    """Return height and width of an image of `shape` (H, W) after resizing."""
    height, width = shape
    if "shortest_edge" in size:
        if "longest_edge" in size:
            return limit_edges(height, width, size["shortest_edge"], size["longest_edge"])
        short = size["shortest_edge"]
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    if "height" in size:
        return size["height"], size["width"]
    raise InputError(f"size must have height and width, shortest_edge, or max_height and max_width, got {size}")


def limit_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return height and width with a short edge of `shortest`, or less if the long edge would exceed `longest`."""
    exact = float(shortest)
    short_edge, long_edge = float(min(height, width)), float(max(height, width))
    if long_edge / short_edge * shortest > longest:
        exact = longest * short_edge / long_edge
        shortest = round(exact)
    if min(height, width) == shortest:
        return height, width
    return (int(exact * height / width), shortest) if width < height else (shortest, int(exact * width / height))


def resize(pixels: Pixels, target: tuple[int, int], resample: int) -> Pixels:
    """Resize by PIL, which needs bytes: floats between 0 and 1 are converted to bytes and back."""
    is_fraction = has_unit_range(pixels)
    if is_fraction:
        pixels = (pixels.astype(np.float64) * 255).astype(np.float32)
    array = pixels.transpose(1, 2, 0).astype(np.uint8)
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    resized = np.array(image.resize((target[1], target[0]), resample=Image.Resampling(resample)))
    resized = resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1)
    return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if is_fraction else resized


def has_unit_range(pixels: Pixels) -> bool:
    """Return whether pixels are floats between 0 and 1, rather than between 0 and 255.

    Raises:
        InputError: They are neither.
    """
    if pixels.dtype == np.uint8:
        return False
    low, high = pixels.min(), pixels.max()
    if np.allclose(pixels, pixels.astype(int)):
        if low >= 0 and high <= 255:
            return False
    elif low >= 0 and high <= 1:
        return True
    raise InputError(f"pixels must be integers between 0 and 255 or floats between 0 and 1, got {low} to {high}")


def center_crop(pixels: Pixels, size: Size) -> Pixels:
    """Crop the center. A smaller image gets a black border."""
    if "height" not in size:
        raise InputError(f"crop_size must have height and width, got {size}")
    height, width = size["height"], size["width"]
    rows, columns = pixels.shape[1:]
    y, x = (rows - height) // 2, (columns - width) // 2
    if height <= rows and width <= columns:
        return pixels[:, y : y + height, x : x + width]
    canvas = np.zeros_like(pixels, shape=(len(pixels), max(height, rows), max(width, columns)))
    y_border, x_border = ceil((canvas.shape[1] - rows) / 2), ceil((canvas.shape[2] - columns) / 2)
    canvas[:, y_border : y_border + rows, x_border : x_border + columns] = pixels
    y, x = y + y_border, x + x_border  # the same window, in coordinates of the canvas
    return canvas[:, max(0, y) : min(canvas.shape[1], y + height), max(0, x) : x + width]


def per_channel(value: Any, name: str, pixels: Pixels) -> Pixels:
    """Return a number, or one number per channel, as an array (C, 1, 1); `name` is its name in errors."""
    values = list(value) if isinstance(value, Sequence) else [value] * len(pixels)
    if len(values) != len(pixels):
        raise InputError(f"{name} must have one value for each of {len(pixels)} channels, got {len(values)}")
    return np.array(values, dtype=pixels.dtype)[:, None, None]


def pad(arrays: Sequence[Pixels], size: Size | None) -> list[Pixels]:
    """Add a black border on the right and below, up to `size` or the largest image."""
    if size is not None and "height" not in size:
        raise InputError(f"pad_size must have height and width, got {size}")
    height = size["height"] if size else max(array.shape[1] for array in arrays)
    width = size["width"] if size else max(array.shape[2] for array in arrays)
    if any(array.shape[1] > height or array.shape[2] > width for array in arrays):
        raise InputError(f"pad_size must be at least as large as every image, got {height} x {width}")
    return [np.pad(a, ((0, 0), (0, height - a.shape[1]), (0, width - a.shape[2]))) for a in arrays]
