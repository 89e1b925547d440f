"""Images from any source to normalized pixels. The rules are openblip's, so the pixels are equal."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from openblip_portable.errors import ImageError, InputError
from openblip_portable.runtime import Floats

Pixels: TypeAlias = NDArray[np.uint8]
ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[np.uint8]"

_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageInput, size: int, *, exact_decode: bool = False) -> tuple[Pixels, tuple[int, int]]:
    """Open an image, make it upright and RGB, and resize it to a square.

    Args:
        source: A path, the bytes of a file, a binary file object, a PIL image, or a uint8 array (H, W, 3) or (H, W).
        size: Side of the square in pixels.
        exact_decode: Whether to decode large JPEG files at their full size, which is slower. By default they are
            decoded at 1/2, 1/4 or 1/8 of it, but at no less than twice `size`, as `openblip` does.

    Returns:
        Pixels (S, S, 3), and width and height of the upright image in its file.

    Raises:
        ImageError: The image cannot be read.
        InputError: The argument has a wrong type or shape.
    """
    if isinstance(source, np.ndarray):
        is_image = source.dtype == np.uint8 and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4)))
        if not is_image:
            raise InputError(f"an array must be uint8 (H, W, 3) or (H, W), got {source.dtype} {source.shape}")
        return _to_square(Image.fromarray(source), None, size)
    if isinstance(source, Image.Image):
        return _to_square(source, None, size)
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
    try:
        if isinstance(source, (bytes, bytearray)):
            file: Any = io.BytesIO(source)
        elif hasattr(source, "read"):
            file = source
        elif isinstance(source, (str, os.PathLike)):
            file = Path(source)
        else:
            raise InputError(f"an image must be a path, bytes, a file, a PIL image or an array, got {name}")
        with Image.open(file) as image:
            full_size = image.size
            if not exact_decode and image.format in ("JPEG", "MPO"):
                image.draft("", (2 * size, 2 * size))
            return _to_square(image, full_size, size)
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read {name}: it is no image, or of a format that Pillow does not read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, (ImageError, InputError)):
            raise
        raise ImageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error


def normalize(pixels: Sequence[Pixels], settings: Mapping[str, Any]) -> Floats:
    """Return float32 pixels (I, 3, S, S) of images (S, S, 3).

    Args:
        pixels: The images.
        settings: The entry `image` of the task in the manifest.

    Returns:
        Normalized pixels.
    """
    mean, std = (np.array(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
    batch = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32, order="C")
    batch /= np.float32(255)
    batch -= mean
    batch /= std
    return batch


def _to_square(image: Image.Image, full_size: tuple[int, int] | None, size: int) -> tuple[Pixels, tuple[int, int]]:
    image.load()  # first: TIFF images are rotated by loading, and PNG files may have their EXIF data at the end
    width, height = full_size or image.size
    if not width or not height:
        raise ImageError(f"an image must have pixels, got {width} x {height}")
    orientation = _read_orientation(image)
    rgb = _to_rgb(image)
    if orientation in _TRANSPOSES:
        rgb = rgb.transpose(_TRANSPOSES[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return np.array(rgb.resize((size, size), Image.Resampling.BICUBIC)), (width, height)


def _read_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the image is good even if its metadata are damaged
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_gray(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image
    if image.mode != "RGBA":
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):  # an unused channel, or one of another meaning
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _scale_gray(image: Image.Image) -> Pixels:
    """Scale gray of more than 8 bits to bytes (H, W)."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        black, white = 0.0, 2.0 ** int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0]) - 1
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow scales their 16 bits itself
        black, white = 0.0, 65535.0
    elif image.format == "PPM":  # a PFM: 1 is white, and highlights can be brighter
        black, white = min(0.0, low), max(1.0, high)
    else:
        black, white = _find_range(low, high, is_float=image.mode == "F")
    gray = np.rint((values - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0; Pillow inverts this for 8 bits only
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return gray


def _find_range(minimum: float, maximum: float, *, is_float: bool) -> tuple[float, float]:
    for white in (1.0, 255.0, 65535.0, 2.0**32 - 1)[0 if is_float else 1 :]:
        if minimum >= 0 and maximum <= white:
            return 0.0, white
    return minimum, maximum if maximum > minimum else minimum + 1
