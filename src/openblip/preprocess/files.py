"""Decoding of image files, with an error for each kind of file that is not an image."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.extras import install_hint
from openblip.preprocess.pixels import read_orientation, swaps_sides, to_upright_rgb

MAX_PIXELS = 178_956_970
"""Maximum number of pixels of a file: half a gigabyte as RGB, and Pillow's own limit."""

FILE_SIZE = "openblip_file_size"  # in `Image.info`: upright size of the file, if it was decoded at a smaller size

# Other files that occur in place of images, by their first bytes in lower case.
_OTHER_KINDS = (
    (b"<svg", "it is an SVG drawing; render it to PNG first"),
    (b"<?xml", "it is XML, perhaps an SVG drawing; render it to PNG first"),
    (b"<!doctype html", "it is a web page, not an image"),
    (b"<html", "it is a web page, not an image"),
    (b"%pdf", "it is a PDF; render its pages first"),
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull`"),
)
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif", b"ftyphevc")


@contextmanager
def wrap_errors(name: str) -> Iterator[None]:
    """Turn all errors of decoders, which have many types, into an `ImageError` that names the source."""
    try:
        yield
    except OpenBlipError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot read {name}: {error}; make it smaller first") from error
    except MemoryError as error:
        raise ImageError(f"cannot read {name}: not enough memory") from error
    except FileNotFoundError as error:
        raise ImageError(f"cannot read {name}: no such file") from error
    except OSError as error:
        reason = error.strerror[0].lower() + error.strerror[1:] if error.strerror else _damaged(error)
        raise ImageError(f"cannot read {name}: {reason}") from error
    except Exception as error:
        raise ImageError(f"cannot read {name}: {_damaged(error)}") from error


def _damaged(error: Exception) -> str:
    reason = re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", str(error))  # an address would differ from run to run
    return f"damaged or truncated ({reason or type(error).__name__})"


def read_path(path: Path, target_size: int | None) -> Image.Image:
    """Load the image in a file; see [`load_image`][openblip.preprocess.image.load_image]."""
    with wrap_errors(str(path)):
        if "\0" in str(path):
            raise ImageError(f"cannot read {path}: no such file")
        if path.is_dir():
            raise ImageError(f"cannot read {path}: it is a folder; name the files in it")
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ImageError(f"cannot read {path}: not a regular file; pass its content as bytes")
        with path.open("rb") as file:
            return decode_image(file, str(path), target_size)


def read_file_object(file: Any, target_size: int | None) -> Image.Image:
    """Load the image in a file object; see [`load_image`][openblip.preprocess.image.load_image]."""
    name = str(getattr(file, "name", "")) or f"a {type(file).__name__}"
    with wrap_errors(name):
        data = file.read()
        if not data and file.seekable():
            file.seek(0)
            data = file.read()
        if isinstance(data, str):
            raise InputError(f"{name} must be open in binary mode, got text mode; use open(path, 'rb')")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(f"{name} must return bytes, got {type(data).__name__}")
        return decode_image(io.BytesIO(data), name, target_size)


def decode_image(file: IO[bytes], name: str, target_size: int | None) -> Image.Image:
    """Decode an image file of any format that Pillow reads without another program.

    Args:
        file: The file, at its start.
        name: Name of the file in errors.
        target_size: See [`load_image`][openblip.preprocess.image.load_image].

    Returns:
        The image, upright and RGB.

    Raises:
        ImageError: The file is not an image, damaged or too large.
    """
    with wrap_errors(name):
        start = file.read(64)
        if not start:
            raise ImageError(f"cannot read {name}: it is empty")
        file.seek(0)
        if start[4:12] in _HEIF_BRANDS:
            _register_heif()
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise ImageError(f"cannot read {name}: {_guess_kind(start)}") from None
        with image:
            if image.format == "EPS":
                raise ImageError(f"cannot read {name}: it is PostScript, a program; render it to PNG first")
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"cannot read {name}: {image.width} x {image.height} is more than {MAX_PIXELS} pixels; "
                    "make it smaller first, or pass a PIL image"
                )
            size = image.size
            if target_size is not None and image.format == "JPEG":
                image.draft("", (2 * target_size, 2 * target_size))
            is_smaller = image.size != size
            rgb = to_upright_rgb(image)
            # Return a copy without metadata: the next reader would apply an orientation in it again.
            if rgb is image:
                rgb = rgb.copy()
            rgb.info.clear()
            if is_smaller:
                rgb.info[FILE_SIZE] = size[::-1] if swaps_sides(read_orientation(image)) else size
            return rgb


@functools.cache
def _register_heif() -> None:
    """Let Pillow read HEIC, if `pillow_heif` is installed."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _guess_kind(start: bytes) -> str:
    """Describe a file that Pillow cannot identify, by its first bytes."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, description in _OTHER_KINDS:
        if text.startswith(prefix):
            return description
    if start[4:12] in _HEIF_BRANDS:
        return f"it is HEIC, or damaged; HEIC needs an extra: {install_hint('heif')}"
    return "it is damaged, or not in an image format that Pillow reads"
