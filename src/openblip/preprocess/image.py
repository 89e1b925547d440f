"""From anything that holds a picture to the tensor that BLIP was trained on.

Three steps, so that a caller can put each on its own thread or device: ``load_image`` (decoded, upright, RGB),
``resize`` (bytes, in the model's square) and ``to_tensor`` (float32, normalised). They equal the original's evaluation
transform: PIL bicubic to exactly S x S, aspect ratio not kept, then (x / 255 - mean) / std.

Shapes: B pictures, S side of the model's square, H and W those of a picture, C its channels.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.preprocess.settings import ImageSettings as ImageSettings
from openblip.preprocess.web import download

if TYPE_CHECKING:
    from torch import Tensor

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any] | Tensor
    )
else:
    ImageSource: TypeAlias = Any

Pixels: TypeAlias = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""A file with more pixels is refused before it is decoded: half a gigabyte as RGB, and Pillow's own limit."""


# --- the three steps ----------------------------------------------------------------------------------------------


def load_image(source: ImageSource, *, near: int | None = None) -> Image.Image:
    """The picture, upright and in RGB, in its own size.

    ``source`` is a path, an ``https`` address (within the limits of :mod:`openblip.preprocess.web`), the bytes of a
    file, a file object (read from where it stands; from the start if it stands at its end), a PIL image, an array
    (H, W, 3) or (H, W) or (H, W, 4) of uint8, or a tensor (3, H, W), or (1, ...) or (4, ...), of uint8 or of floats in
    0..1. Colours are R, G, B; a fourth channel is alpha. A PIL image that is upright and RGB comes back itself.

    EXIF orientation is applied and transparency becomes white. Of an animation or a file of several pages the first is
    taken (a PIL image stays at the frame it shows). 16-bit grey is scaled from its full range; 32-bit and float grey,
    whose white no file declares, from the first of 0..1 (float only), 0..255, 0..65535 and 0..2^32 - 1 that holds all
    its values, or else from its least to its greatest.

    With ``near``, the side of the square that it will be resized to, a JPEG file of more than twice that is decoded at
    a half, a quarter or an eighth of its size, still at least twice the square: several times as fast, and the resized
    picture differs by a fraction of a grey level on average.

    Raises ``ImageError``, which names the source and the reason, for whatever cannot be read, has more than
    ``MAX_PIXELS`` or cannot be fetched; ``InputError`` for an argument of another type or shape; nothing else.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or f"a PIL image {source.size}"
        with _reading(name):
            return _upright_rgb(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, "an array")
    if "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor):
        return _from_tensor(source)
    if isinstance(source, str) and "://" in source:
        return _decode(io.BytesIO(download(source)), source, near)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(os.fsdecode(source)), near)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _decode(io.BytesIO(data), f"{len(data)} bytes", near)
    if hasattr(source, "read"):
        return _from_file(source, near)
    raise InputError(
        f"a picture is a path, an https address, bytes, a file object, a PIL image, an array or a tensor, "
        f"not {type(source).__name__}"
    )


def whole_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture from :func:`load_image` as its file has them, whatever it was decoded at."""
    return cast("tuple[int, int]", image.info.get(_WHOLE, image.size))


def resize(image: Image.Image, size: int) -> Pixels:
    """An RGB picture as bytes (S, S, 3): bicubic with antialiasing, its aspect ratio not kept, as in training.

    Pillow rounds to bytes between its pass over rows and that over columns. Before version 13 rows came first; now the
    order depends on the sizes, which moves single pixels of tall pictures by a few grey levels.
    """
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def to_tensor(batch: Pixels | Tensor, settings: ImageSettings) -> Tensor:
    """Bytes (B, S, S, 3), an array or a tensor on any device, as normalised float32 (B, 3, S, S) on that device."""
    import torch

    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
        raise InputError(f"pictures are uint8 (B, S, S, 3), not {batch.dtype} {tuple(batch.shape)}")
    mean = torch.tensor(settings.mean, device=batch.device).view(3, 1, 1)
    std = torch.tensor(settings.std, device=batch.device).view(3, 1, 1)
    pixels = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(mean).div_(std)


# --- encoded pictures ---------------------------------------------------------------------------------------------

# What often comes in a picture's place, by how it starts.
_KINDS = (
    (b"<svg", "it is an SVG drawing: render it to PNG first"),
    (b"<?xml", "it is XML, perhaps an SVG drawing: render it to PNG first"),
    (b"<!doctype html", "it is a web page, not a picture"),
    (b"<html", "it is a web page, not a picture"),
    (b"%pdf", "it is a PDF: render its pages first"),
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
)
_HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif", b"ftyphevc")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is an ``ImageError`` that names the source: decoders raise errors of all kinds."""
    try:
        yield
    except OpenBlipError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot read {name}: {error}; make it smaller first") from error
    except MemoryError as error:
        raise ImageError(f"cannot read {name}: it needs more memory than there is") from error
    except Exception as error:
        raise ImageError(f"cannot read {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"damaged or cut short ({str(error) or type(error).__name__})"


def _from_path(path: Path, near: int | None) -> Image.Image:
    with _reading(str(path)):
        if "\0" in str(path):
            raise ImageError(f"cannot read {path}: no such file")
        if path.is_dir():
            raise ImageError(f"cannot read {path}: it is a folder; name the files in it")
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ImageError(f"cannot read {path}: it is no regular file; pass its content as bytes")
        with path.open("rb") as file:
            return _decode(file, str(path), near)


def _from_file(file: Any, near: int | None) -> Image.Image:
    name = str(getattr(file, "name", "")) or f"a {type(file).__name__}"
    with _reading(name):
        data = file.read()
        if not data and file.seekable():
            file.seek(0)
            data = file.read()
        if isinstance(data, str):
            raise InputError(f"{name} is open as text: open it in binary mode, open(path, 'rb')")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(f"{name} gives {type(data).__name__}, not bytes")
        return _decode(io.BytesIO(data), name, near)


def _decode(file: IO[bytes], name: str, near: int | None) -> Image.Image:
    """A picture file of any format that Pillow reads in its own process."""
    with _reading(name):
        start = file.read(64)
        if not start:
            raise ImageError(f"cannot read {name}: it is empty")
        file.seek(0)
        if start[4:12] in _HEIF:
            _register_heif()
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise ImageError(f"cannot read {name}: {_guess(start)}") from None
        with image:
            if image.format == "EPS":
                raise ImageError(f"cannot read {name}: it is PostScript, a program; render it to PNG first")
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"cannot read {name}: {image.width} x {image.height} is more than {MAX_PIXELS} pixels; "
                    "make it smaller first, or pass a PIL image"
                )
            whole = image.size
            if near is not None and image.format == "JPEG":
                image.draft("", (2 * near, 2 * near))
            smaller = image.size != whole
            picture = _upright_rgb(image)
            # A plain picture: an orientation left in its notes would be applied again by the next reader.
            picture = picture.copy() if picture is image else picture
            picture.info.clear()
            if smaller:
                picture.info[_WHOLE] = whole[::-1] if _orientation(image) in _LYING else whole
            return picture


@functools.cache
def _register_heif() -> None:
    """Let Pillow read HEIC, if the library for it is there."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _guess(start: bytes) -> str:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for kind, words in _KINDS:
        if text.startswith(kind):
            return words
    if start[4:12] in _HEIF:
        return "it is HEIC, or damaged: HEIC needs pillow-heif, pip install 'openblip[heif]'"
    return "it is damaged, or no picture in a format that Pillow reads"


# --- pixels -------------------------------------------------------------------------------------------------------

_ORIENTATION = 0x0112  # EXIF: how the camera was held
_LYING = (5, 6, 7, 8)  # those that exchange width and height
_WHOLE = "openblip_whole_size"
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()  # first: TIFF turns itself while loading, and PNG may keep its EXIF at the end
    if not image.width or not image.height:
        raise ImageError(f"a picture of {image.width} x {image.height} has no pixels")
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image)
    if turn is None:
        return rgb
    rgb = rgb.transpose(turn)
    rgb.info.clear()
    return rgb


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged notes do not damage the picture
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.has_transparency_data:
        picture = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Pixels:
    """Grey of more than 8 bits as bytes (H, W), scaled to white = 255."""
    values = np.asarray(image).astype(np.float64)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        white = 2.0 ** int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0]) - 1
        low = 0.0
    elif image.format in ("PNG", "PPM"):  # these scale their 16 bits themselves
        low, white = 0.0, 65535.0
    else:
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        low, white = _range(float(values.min()), float(values.max()), image.mode == "F")
    grey = np.rint((values - low) * (255 / (white - low))).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow turns this round for 8 bits only
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return grey


def _range(least: float, greatest: float, floats: bool) -> tuple[float, float]:
    for white in (1.0, 255.0, 65535.0, 2.0**32 - 1)[0 if floats else 1 :]:
        if least >= 0 and greatest <= white:
            return 0.0, white
    return least, greatest


def _from_array(array: NDArray[Any], what: str) -> Image.Image:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8."""
    shape = array.shape
    if array.ndim == 4:
        raise InputError(f"{what} of shape {shape} is a batch: pass list(batch)")
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise InputError(f"{what} of shape {shape} has its channels first: pass array.transpose(1, 2, 0)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise InputError(f"{what} of shape {shape} is no picture: it must be (H, W, 3), R, G and B")
    if array.dtype != np.uint8:
        advice = "(array * 255).round().astype('uint8') if it is in 0..1" if array.dtype.kind == "f" else "0..255"
        raise InputError(f"{what} of {array.dtype} is no picture: it must be uint8, {advice}")
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    return _rgb(Image.fromarray(np.ascontiguousarray(array)))


def _from_tensor(tensor: Tensor) -> Image.Image:
    """(H, W), (1, H, W), (3, H, W) or (4, H, W), of uint8 or of floats in 0..1, on any device."""
    import torch

    shape = tuple(tensor.shape)
    if tensor.ndim == 4:
        raise InputError(f"a tensor of shape {shape} is a batch: pass list(batch)")
    if tensor.ndim == 3 and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise InputError(f"a tensor of shape {shape} has its channels last: pass tensor.permute(2, 0, 1)")
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and shape[0] not in (1, 3, 4)) or 0 in shape:
        raise InputError(f"a tensor of shape {shape} is no picture: it must be (3, H, W), R, G and B")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
        low, high = tensor.min().item(), tensor.max().item()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN; half precision rounds a little past the ends
            raise InputError(
                f"a float tensor is in 0..1, not {low:.4g}..{high:.4g}: undo its normalisation, or clamp it"
            )
        tensor = (tensor * 255).round().clamp(0, 255).to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise InputError(f"a tensor of {tensor.dtype} is no picture: it must be uint8, or float in 0..1")
    return _from_array(tensor.movedim(0, -1).numpy() if tensor.ndim == 3 else tensor.numpy(), "a tensor")
