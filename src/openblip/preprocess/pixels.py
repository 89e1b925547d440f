"""Conversion of decoded images, arrays and tensors to upright RGB images with 8 bits per channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openblip.errors import ImageError, InputError

if TYPE_CHECKING:
    from torch import Tensor

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC = 258, 262
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, and convert to RGB. An upright RGB image is returned as it is."""
    image.load()  # first: TIFF images are rotated by loading, and PNG files may have their EXIF data at the end
    if not image.width or not image.height:
        raise ImageError(f"an image must have pixels, got {image.width} x {image.height}")
    transpose = _TRANSPOSES.get(read_orientation(image) or 1)
    rgb = _to_rgb(image)
    if transpose is None:
        return rgb
    rgb = rgb.transpose(transpose)
    rgb.info.clear()
    return rgb


def read_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of an image, or `None`."""
    try:
        return cast("int | None", image.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # the image is good even if its metadata are damaged
        return None


def swaps_sides(orientation: int | None) -> bool:
    """Return whether an EXIF orientation exchanges width and height."""
    return orientation in (5, 6, 7, 8)


def turns(image: Image.Image) -> bool:
    """Return whether an image has to be rotated or mirrored to be upright."""
    return read_orientation(image) in _TRANSPOSES


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_gray(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image  # `convert` would copy it
        if image.mode != "RGBA":
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if rgba.getchannel("A").getextrema() == (0, 0):  # an unused channel, or one of another meaning
            return rgba.convert("RGB")
        if rgba.width * rgba.height <= _MAX_PIXELS_AT_ONCE:
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        rgb = Image.new("RGB", rgba.size)
        for top in range(0, rgba.height, rows := _rows_at_once(rgba.width)):
            strip = rgba.crop((0, top, rgba.width, min(top + rows, rgba.height)))
            rgb.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


_MAX_PIXELS_AT_ONCE = 2**20  # larger images are converted in strips, to save memory


def _rows_at_once(width: int) -> int:
    return max(1, _MAX_PIXELS_AT_ONCE // max(1, width))


def _scale_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Scale gray of more than 8 bits to bytes (H, W); see `load_image`."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        black, white = 0.0, 2.0 ** int(np.ravel(tags.get(_TIFF_BITS_PER_SAMPLE, 16))[0]) - 1
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow scales their 16 bits itself
        black, white = 0.0, 65535.0
    else:
        ranges = [(float(strip.min()), float(strip.max())) for _, strip in _iter_strips(image)]
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        if image.format == "PPM":  # a PFM: 1 is white, and highlights can be brighter
            black, white = min(0.0, low), max(1.0, high)
        else:
            black, white = _find_range(low, high, image.mode == "F")
    transparent = image.info.get("transparency")
    gray = np.empty((image.height, image.width), np.uint8)
    for rows, strip in _iter_strips(image):
        gray[rows] = np.rint((strip - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)
        if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is 0; Pillow inverts this for 8 bits only
            gray[rows] = 255 - gray[rows]
        if isinstance(transparent, int):
            gray[rows][strip == transparent] = 255
    return gray


def _iter_strips(image: Image.Image) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield strips of rows as floating-point numbers, which take eight times the memory of bytes."""
    step = _rows_at_once(image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        strip = np.asarray(image.crop((0, top, image.width, bottom))).astype(np.float64)
        yield slice(top, bottom), np.nan_to_num(strip, nan=0.0, posinf=0.0, neginf=0.0)


def _find_range(minimum: float, maximum: float, is_float: bool) -> tuple[float, float]:
    for white in (1.0, 255.0, 65535.0, 2.0**32 - 1)[0 if is_float else 1 :]:
        if minimum >= 0 and maximum <= white:
            return 0.0, white
    return minimum, maximum if maximum > minimum else minimum + 1


def convert_array(array: NDArray[Any], kind: str = "an array") -> Image.Image:
    """Convert a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) to an RGB image.

    Args:
        array: The array.
        kind: Name of the array in errors.

    Returns:
        The image.

    Raises:
        InputError: Another shape or type.
    """
    shape = array.shape
    if array.ndim == 4:
        raise InputError(f"{kind} must be a single image, got a batch of shape {shape}; pass list(batch)")
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise InputError(f"{kind} must have its channels last, got shape {shape}; pass array.transpose(1, 2, 0)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise InputError(f"{kind} must have shape (H, W, 3), in the order R, G, B, got {shape}")
    if array.dtype != np.uint8:
        remedy = "pass (array * 255).round().astype('uint8') if it is from 0 to 1" if array.dtype.kind == "f" else ""
        raise InputError(f"{kind} must be uint8, from 0 to 255, got {array.dtype}" + (remedy and f"; {remedy}"))
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def convert_tensor(tensor: Tensor) -> Image.Image:
    """Convert a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W), uint8 or floating-point from 0 to 1, to an RGB image.

    Args:
        tensor: The tensor, on any device.

    Returns:
        The image.

    Raises:
        InputError: Another shape, type or value range.
    """
    import torch

    shape = tuple(tensor.shape)
    if tensor.ndim == 4:
        raise InputError(f"a tensor must be a single image, got a batch of shape {shape}; pass list(batch)")
    if tensor.ndim == 3 and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise InputError(f"a tensor must have its channels first, got shape {shape}; pass tensor.permute(2, 0, 1)")
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and shape[0] not in (1, 3, 4)) or 0 in shape:
        raise InputError(f"a tensor must have shape (3, H, W), in the order R, G, B, got {shape}")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
        low, high = tensor.min().item(), tensor.max().item()
        # Half precision rounds a little beyond 0 and 1. The condition is also false for NaN.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise InputError(
                f"a float tensor must be from 0 to 1, got {low:.4g} to {high:.4g}; undo its normalization, or clamp it"
            )
        tensor = (tensor * 255).round().clamp(0, 255).to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise InputError(f"a tensor must be uint8, or float from 0 to 1, got {tensor.dtype}")
    return convert_array(tensor.movedim(0, -1).numpy() if tensor.ndim == 3 else tensor.numpy(), "a tensor")
