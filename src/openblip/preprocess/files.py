"""Decoding of image files, with an error for each kind of file that is not an image."""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.preprocess.formats import RAW_SUFFIXES, describe_unreadable, suffix_of
from openblip.preprocess.limits import BUDGET, DecodeLimits, default_limits, estimate_bytes
from openblip.preprocess.pixels import read_orientation, swaps_sides, to_upright_rgb, turns

FILE_SIZE = "openblip_file_size"  # in `Image.info`: upright size of the file, if it was decoded at a smaller size

_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif", b"ftyphevc", b"ftyphevx", b"ftypmsf1")
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_START_BYTES = 4096
_DNG_VERSION = 50706


@contextmanager
def wrap_errors(name: str) -> Iterator[None]:
    """Turn all errors of decoders, which have many types, into an `ImageError` that names the source."""
    try:
        yield
    except OpenBlipError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot read {name}: it is too large ({error}); make it smaller first") from error
    except MemoryError as error:
        raise ImageError(f"cannot read {name}: not enough memory") from error
    except FileNotFoundError as error:
        similar = same_name(name, ignore_case=True)
        hint = f"; there is {os.path.basename(similar)}, in another case" if similar else ""  # noqa: PTH119
        raise ImageError(f"cannot read {name}: no such file{hint}") from error
    except OSError as error:
        reason = error.strerror[0].lower() + error.strerror[1:] if error.strerror else _damaged(error)
        raise ImageError(f"cannot read {name}: {reason}") from error
    except Exception as error:
        raise ImageError(f"cannot read {name}: {_damaged(error)}") from error


def _damaged(error: Exception) -> str:
    reason = re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", str(error))  # an address would differ from run to run
    return f"damaged or truncated ({reason or type(error).__name__})"


def same_name(path: str, *, ignore_case: bool = False) -> str | None:
    """Return the file whose name is that of a path in another Unicode form, if there is exactly one.

    Args:
        path: Path of a file that does not exist.
        ignore_case: Also accept a name in another case.

    Returns:
        The path of the file, or `None`.
    """
    folder, name = os.path.split(path)
    try:
        names = _names_by_form(folder or ".", Path(folder or ".").stat().st_mtime_ns, ignore_case)
    except (OSError, ValueError):
        return None
    matches = [match for match in names.get(_normalize(name, ignore_case), []) if match != name]
    return os.path.join(folder, matches[0]) if len(matches) == 1 else None  # noqa: PTH118


@functools.lru_cache(maxsize=8)
def _names_by_form(folder: str, modified: int, ignore_case: bool) -> dict[str, list[str]]:
    """Return the names in a folder by their normal form. `modified` keeps an old list from being used."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):  # noqa: PTH208
        names.setdefault(_normalize(name, ignore_case), []).append(name)
    return names


def _normalize(name: str, ignore_case: bool) -> str:
    composed = unicodedata.normalize("NFC", name)
    return composed.casefold() if ignore_case else composed


def read_path(path: Path, target_size: int | None, limits: DecodeLimits | None = None) -> Image.Image:
    """Load the image in a file; see [`load_image`][openblip.preprocess.image.load_image]."""
    with wrap_errors(str(path)):
        if "\0" in str(path):
            raise ImageError(f"cannot read {path}: no such file")
        if path.is_dir():
            raise ImageError(f"cannot read {path}: it is a folder; name the files in it")
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ImageError(f"cannot read {path}: not a regular file; pass its content as bytes")
        with path.open("rb") as file:
            return decode_image(file, str(path), target_size, limits)


def read_file_object(file: Any, target_size: int | None, limits: DecodeLimits | None = None) -> Image.Image:
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
        return decode_image(io.BytesIO(data), name, target_size, limits)


def decode_image(
    file: IO[bytes], name: str, target_size: int | None, limits: DecodeLimits | None = None
) -> Image.Image:
    """Decode an image file of any format that Pillow reads without another program.

    Args:
        file: The file, at its start.
        name: Name of the file in errors.
        target_size: See [`load_image`][openblip.preprocess.image.load_image].
        limits: Limits on memory and pixels; by default the process's.

    Returns:
        The image, upright and RGB.

    Raises:
        ImageError: The file is not an image, damaged or too large.
    """
    with wrap_errors(name):
        start = file.read(_START_BYTES)
        if not start:
            raise ImageError(f"cannot read {name}: it is empty")
        file_size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if start[4:12] in _HEIF_BRANDS:
            _register_heif()
        elif start.startswith(_JXL_STARTS):
            _register_jxl()
        if start[:2] == b"PF" and start[2:3].isspace():
            return _decode_color_pfm(file)
        image = identify(file)
        if image is None:
            raise ImageError(f"cannot read {name}: {describe_unreadable(start)}")
        with image:
            _refuse_programs(image, name)
            _correct_planes(image)
            size = image.size
            if target_size is not None and image.format in ("JPEG", "MPO"):
                image.draft("", (2 * target_size, 2 * target_size))
            is_smaller = image.size != size
            turned = turns(image) if image.format in ("JPEG", "MPO") else False
            with BUDGET.reserve(check_limits(image, name, size, limits, turned=turned, file_size=file_size)):
                try:
                    rgb = to_upright_rgb(image)
                except Exception as error:  # free the pixels before another image takes their place in the budget
                    traceback.clear_frames(error.__traceback__)
                    image.close()
                    raise
            # Return an image without metadata: the next reader would apply an orientation in it again.
            if rgb is image:
                rgb = image._new(image.im)  # the same pixels: a copy would need as much memory again
            rgb.info.clear()
            if is_smaller:
                rgb.info[FILE_SIZE] = size[::-1] if swaps_sides(read_orientation(image)) else size
            return rgb


def identify(file: IO[bytes]) -> Image.Image | None:
    """Open an image file as `Image.open` does, without its warnings and its limit, which belong to the whole process.

    Args:
        file: The file.

    Returns:
        The image, not decoded yet, or `None` if no format fits.
    """
    tried: set[str] = set()
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in [name for name in Image.ID if name not in tried]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            file.seek(0)
            accepted = accept is None or accept(file.read(16))
            if not accepted or isinstance(accepted, str):  # a text says why this Pillow cannot read the format
                continue
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # another format
                continue
    return None


def check_limits(
    image: Image.Image,
    name: str,
    size: tuple[int, int],
    limits: DecodeLimits | None = None,
    *,
    turned: bool = False,
    file_size: int = 0,
) -> int:
    """Return the memory that decoding an image takes, if its limits allow it.

    Args:
        image: The opened image, after `draft`.
        name: Name of the file in errors.
        size: Width and height of the file.
        limits: The limits; by default the process's.
        turned: Whether the image has to be rotated or mirrored.
        file_size: Number of bytes of the file.

    Returns:
        Number of bytes.

    Raises:
        ImageError: The image is too large.
    """
    limits = limits or default_limits()
    need = estimate_bytes(image, size, turned=turned, file_size=file_size)
    width, height = size
    if limits.max_pixels is not None and width * height > limits.max_pixels:
        raise ImageError(
            f"cannot read {name}: it is too large: {width} x {height} is more than {limits.max_pixels} pixels; "
            "make it smaller first, or raise the limit (--max-pixels)"
        )
    if limits.max_bytes is not None and need > limits.max_bytes:
        raise ImageError(
            f"cannot read {name}: it is too large: decoding {width} x {height} pixels would take {need / 1e6:.0f} MB, "
            f"more than {limits.max_bytes / 1e6:.0f} MB; make it smaller first, or set another limit (--max-pixels)"
        )
    return need


def _refuse_programs(image: Image.Image, name: str) -> None:
    """Raise `ImageError` for formats that Pillow opens and that do not hold the picture itself."""
    if image.format == "EPS":
        raise ImageError(f"cannot read {name}: it is PostScript, a program; render it to PNG first")
    if image.format == "TIFF":
        is_raw = suffix_of(name) in RAW_SUFFIXES or _DNG_VERSION in getattr(image, "tag_v2", ())
        if is_raw:  # Pillow would read a thumbnail, or the uninterpreted sensor
            raise ImageError(f"cannot read {name}: it is a RAW photo; convert it to JPEG or PNG first")
    if not image.width or not image.height:
        raise ImageError(f"cannot read {name}: an image must have pixels, got {image.width} x {image.height}")


def _correct_planes(image: Image.Image) -> None:
    """Correct how Pillow reads an uncompressed TIFF with a plane of 16 bits per channel: as 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode not in ("RGB", "RGBA"):
        return
    tags = image.tag_v2
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) != 2 or bits[0] != 16:
        return
    order = "L" if tags.prefix == b"II" else "B"
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and tile.args[0] in tuple("RGBA")
        else tile
        for tile in image.tile
    ]


def _decode_color_pfm(file: IO[bytes]) -> Image.Image:
    """Decode a portable float map in color, which Pillow does not read: 32-bit floats, the bottom row first.

    Raises:
        ImageError: The file is damaged.
    """
    header = re.match(rb"PF\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s+(-?[\d.eE+-]+)\s", file.read(_START_BYTES))
    if header is None:
        raise ValueError("the header of the PFM")
    width, height, scale = int(header[1]), int(header[2]), float(header[3])
    count = width * height * 3
    if not count or not scale:
        raise ValueError("the header of the PFM")
    file.seek(header.end())
    with BUDGET.reserve(count * 16):
        values = np.frombuffer(file.read(4 * count), "<f4" if scale < 0 else ">f4")
        if len(values) < count:
            raise ValueError("image file is truncated")
        values = np.nan_to_num(values.reshape(height, width, 3)[::-1], nan=0.0, posinf=0.0, neginf=0.0).astype("<f4")
        white = max(1.0, float(values.max()))
        return Image.fromarray(np.rint(values.clip(0) * (255 / white)).astype(np.uint8), "RGB")


@functools.cache
def _register_heif() -> None:
    """Let Pillow read HEIC, if `pillow_heif` is installed."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


@functools.cache
def _register_jxl() -> None:
    """Let Pillow read JPEG XL, if `pillow-jxl-plugin` is installed."""
    with suppress(ImportError):
        import_module("pillow_jxl")  # importing it registers the format
