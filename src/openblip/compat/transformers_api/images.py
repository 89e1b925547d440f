"""``BlipImageProcessor``: pictures to pixels by the PIL path of that library, step by step.

It does what that library does and no more: the EXIF orientation of an opened picture is not applied (that of a path
is). For our own reading of pictures see :mod:`openblip.preprocess.image`.

Shapes: pictures are (C, H, W) inside.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from openblip.compat.transformers_api.features import TENSOR_TYPES, BatchFeature
from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.errors import CheckpointError, ImageError, InputError
from openblip.preprocess.image import load_image

Pixels = np.ndarray[Any, Any]
Size = dict[str, int]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"height": 384, "width": 384},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "do_convert_rgb": True,
    "default_to_square": True,
    "do_center_crop": None,
    "crop_size": None,
    "do_pad": None,
    "pad_size": None,
}
# The order of the arguments of 4.x, after the images.
_PLACES = (
    *("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("return_tensors", "do_convert_rgb", "data_format", "input_data_format"),
)
_CALL_ONLY = ("return_tensors", "data_format", "input_data_format")
_WITHOUT_EFFECT = ("device", "disable_grouping", "image_seq_length")  # on this path, in that library too
OPTIONS = frozenset((*_DEFAULTS, *_CALL_ONLY, *_WITHOUT_EFFECT))
"""The name of every option of :meth:`BlipImageProcessor.preprocess`."""

_FORMATS = (None, "channels_first", "channels_last")


class BlipImageProcessor:
    """Resize to a square without keeping the aspect ratio, rescale to 0..1, normalise.

    Every setting can be given at construction, in :meth:`from_pretrained`, or for one call.
    """

    model_input_names = ("pixel_values",)
    default_to_square: bool
    size: Size

    def __init__(self, **settings: Any) -> None:
        settings = {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}
        self._settings = list(_DEFAULTS)
        for name, default in _DEFAULTS.items():
            value = settings.pop(name, default)
            setattr(self, name, default if value is None and not name.startswith("do_") else value)
        for name in ("size", "crop_size", "pad_size"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, _size(value, name, name != "size" or self.default_to_square))
        for name, value in settings.items():  # kept and written back, without effect
            self._settings.append(name)
            setattr(self, name, value)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """As :meth:`preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """``pixel_values`` of one picture or a list: PIL, arrays or tensors (also a batch), paths, base64, addresses.

        Options are those of the constructor and ``return_tensors`` ("pt", "np"), ``data_format`` (of the result),
        ``input_data_format`` (both "channels_first" or "channels_last"). ``None`` switches a step off, and stands for
        the stored value of anything else. Without ``return_tensors`` the result holds a list of float32 arrays.
        """
        options = self._options(args, kwargs)
        arrays = [self._one(image, options) for image in flat_list(fetch_images(images))]
        if options["do_pad"]:
            arrays = _pad(arrays, options["pad_size"])
        if options["data_format"] == "channels_last":
            arrays = [array.transpose(1, 2, 0) for array in arrays]
        return BatchFeature({"pixel_values": arrays}, tensor_type=options["return_tensors"])

    def fetch_images(self, images: Any) -> Any:
        """Open what is named by a path, an address or base64 text; pass pictures through."""
        return fetch_images(images)

    def _options(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(_PLACES):
            raise TypeError(f"preprocess takes at most {len(_PLACES)} options by position")
        given = dict(zip(_PLACES, args, strict=False))
        if twice := set(given) & set(kwargs):
            raise TypeError(f"preprocess got {', '.join(sorted(twice))} twice")
        given.update(kwargs)
        for name in given:
            if name not in OPTIONS:
                raise TypeError(f"preprocess has no option {name!r}")
        options = {name: getattr(self, name) for name in _DEFAULTS} | dict.fromkeys(_CALL_ONLY)
        options |= {name: value for name, value in given.items() if value is not None or name.startswith("do_")}
        for name in ("size", "crop_size", "pad_size"):
            if options[name] is not None:
                options[name] = _size(options[name], name, name != "size" or options["default_to_square"])
        _validate(options)
        return options

    def _one(self, image: Any, options: Mapping[str, Any]) -> Pixels:
        """One picture through all steps."""
        pixels = _channels_first(image, options["do_convert_rgb"], options["input_data_format"])
        if options["do_resize"]:
            target = _target(pixels.shape[1:], options["size"])
            pixels = _resize(pixels, target, options["resample"])
        if options["do_center_crop"]:
            pixels = _center_crop(pixels, options["crop_size"])
        if options["do_rescale"]:
            pixels = (pixels.astype(np.float64) * options["rescale_factor"]).astype(np.float32)
        if options["do_normalize"]:
            pixels = _normalise(pixels, options["image_mean"], options["image_std"])
        return pixels

    # Files

    @classmethod
    def from_pretrained(cls, name_or_path: StrPath, **kwargs: Any) -> Any:
        """Read ``processor_config.json`` or ``preprocessor_config.json`` of a folder or hub id; ``kwargs`` override."""
        folder, kwargs = local_folder(name_or_path, kwargs)
        return cls.from_dict(_read(folder), **kwargs)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **kwargs: Any) -> Any:
        """A processor from a dictionary; with ``return_unused_kwargs=True``, and the ``kwargs`` it has no use for."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        used = {name: value for name, value in kwargs.items() if name in _DEFAULTS}
        processor = cls(**{**values, **used})
        unused = {name: value for name, value in kwargs.items() if name not in used}
        return (processor, unused) if return_unused else processor

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data."""
        values = {name: getattr(self, name) for name in self._settings if name != "default_to_square"}
        values = {name: value for name, value in values.items() if value is not None}
        values["resample"] = int(values["resample"])
        return {**values, "image_processor_type": "BlipImageProcessor"}

    def to_json_string(self) -> str:
        """The text of ``preprocessor_config.json``."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: StrPath) -> list[str]:
        """Write ``preprocessor_config.json``, which ``transformers`` reads too; the path written."""
        path = Path(save_directory) / "preprocessor_config.json"
        write_text(path, self.to_json_string())
        return [str(path)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


_NOT_SETTINGS = ("feature_extractor_type", "image_processor_type", "processor_class", "_processor_class")


def _read(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        return dict(json.loads(folder.read_text(encoding="utf-8")))
    nested = folder / "processor_config.json"
    if nested.is_file():
        values = json.loads(nested.read_text(encoding="utf-8"))
        if "image_processor" in values:
            return dict(values["image_processor"])
    plain = folder / "preprocessor_config.json"
    if not plain.is_file():
        raise CheckpointError(f"{folder} has neither processor_config.json nor preprocessor_config.json")
    return dict(json.loads(plain.read_text(encoding="utf-8")))


# What can be given


def fetch_images(images: Any) -> Any:
    """Open named pictures, also inside lists."""
    if isinstance(images, list | tuple):
        return [fetch_images(image) for image in images]
    if isinstance(images, str):
        return _open(images)
    if _is_image(images):
        return images
    raise TypeError(f"a picture is PIL, an array, a tensor, a path or an address, not {type(images)}")


def _open(name: str) -> Image.Image:
    if name.startswith(("http://", "https://")):
        return load_image(name)
    source: str | io.BytesIO = name
    if not Path(name).is_file():
        try:
            source = io.BytesIO(base64.b64decode(name.split(",")[1] if name.startswith("data:image/") else name))
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"{name[:100]!r} is neither a file, nor an address, nor base64") from error
    try:
        return ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    except UnidentifiedImageError as error:
        raise ImageError(f"{name[:100]!r} is no picture") from error


def flat_list(images: Any) -> list[Any]:
    """A flat list of single pictures, from one, a batch of them, or lists of either, two deep."""
    if isinstance(images, list | tuple):
        if images and all(isinstance(image, list | tuple) for image in images):
            return [image for group in images for image in flat_list(group)]
        if images and all(_is_image(image) for image in images):
            if isinstance(images[0], Image.Image) or images[0].ndim == 3:
                return list(images)
            if images[0].ndim == 4:
                return [image for batch in images for image in batch]
    elif isinstance(images, Image.Image) or (_is_image(images) and images.ndim == 3):
        return [images]
    elif _is_image(images) and images.ndim == 4:
        return list(images)
    raise InputError("images are pictures with three axes, batches with four, or lists of them")


def _is_image(value: object) -> bool:
    return isinstance(value, Image.Image | np.ndarray | Tensor)


def _channels_first(image: Any, to_rgb: bool | None, layout: str | None) -> Pixels:
    if isinstance(image, Image.Image):
        array = np.array(_rgb(image) if to_rgb else image)
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    layout = layout or _layout(array)
    if layout == "channels_last":
        array = np.moveaxis(array, -1, 0)
    return _rgb_array(array) if to_rgb else array


def _layout(array: Pixels) -> str:
    """Where the channels are; first, if both ends could be them."""
    if array.shape[0] in (1, 3, 4):
        return "channels_first"
    if array.shape[-1] in (1, 3, 4):
        return "channels_last"
    raise InputError(f"which axis of {array.shape} holds the channels? Pass input_data_format")


def _rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white behind it."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _rgb_array(array: Pixels) -> Pixels:
    """As :func:`_rgb` for an array (C, H, W)."""
    if len(array) == 1:
        return np.repeat(array, 3, axis=0)
    if len(array) != 4:
        return array
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole and (array.min() < 0 or array.max() > 1):
        raise InputError(f"a floating RGBA picture has values from 0 to 1, not {array.min()} to {array.max()}")
    white = 255 if whole else 1.0
    alpha = array[3:] / white
    mixed = alpha * array[:3] + (1 - alpha) * white
    return (np.round(mixed) if whole else mixed).astype(array.dtype)


# The steps


def _target(shape: Sequence[int], size: Size) -> tuple[int, int]:
    """Height and width after resizing, of a picture of ``shape`` (H, W)."""
    height, width = shape
    if "shortest_edge" in size:
        if "longest_edge" in size:
            return _within(height, width, size["shortest_edge"], size["longest_edge"])
        short = size["shortest_edge"]
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    if "height" in size:
        return size["height"], size["width"]
    raise InputError(f"size {size}: height and width, shortest_edge, or max_height and max_width")


def _within(height: int, width: int, short: int, most: int) -> tuple[int, int]:
    """The shorter edge becomes ``short``, or less where the longer one would exceed ``most``."""
    exact = float(short)
    least, greatest = float(min(height, width)), float(max(height, width))
    if greatest / least * short > most:
        exact = most * least / greatest
        short = round(exact)
    if min(height, width) == short:
        return height, width
    return (int(exact * height / width), short) if width < height else (short, int(exact * width / height))


def _resize(pixels: Pixels, target: tuple[int, int], resample: int) -> Pixels:
    """Through PIL, which takes bytes: floats from 0 to 1 are made bytes and back."""
    fraction = _is_fraction(pixels)
    if fraction:
        pixels = (pixels.astype(np.float64) * 255).astype(np.float32)
    array = pixels.transpose(1, 2, 0).astype(np.uint8)
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    resized = np.array(image.resize((target[1], target[0]), resample=Image.Resampling(resample)))
    resized = resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1)
    return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if fraction else resized


def _is_fraction(pixels: Pixels) -> bool:
    if pixels.dtype == np.uint8:
        return False
    low, high = pixels.min(), pixels.max()
    if np.allclose(pixels, pixels.astype(int)):
        if low >= 0 and high <= 255:
            return False
    elif low >= 0 and high <= 1:
        return True
    raise InputError(f"pixels are whole numbers from 0 to 255 or floats from 0 to 1, not {low} to {high}")


def _center_crop(pixels: Pixels, size: Size) -> Pixels:
    """The middle of a picture, with black around one that is smaller."""
    if "height" not in size:
        raise InputError(f"crop_size {size} needs height and width")
    height, width = size["height"], size["width"]
    rows, columns = pixels.shape[1:]
    if height > rows or width > columns:
        room = np.zeros_like(pixels, shape=(len(pixels), max(height, rows), max(width, columns)))
        top, left = ceil((room.shape[1] - rows) / 2), ceil((room.shape[2] - columns) / 2)
        room[:, top : top + rows, left : left + columns] = pixels
        # In the wider room the same window lies at the offset it had, moved by what was added before.
        start_row, start_column = (rows - height) // 2 + top, (columns - width) // 2 + left
        return room[
            :, max(0, start_row) : min(room.shape[1], start_row + height), max(0, start_column) : start_column + width
        ]
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _normalise(pixels: Pixels, mean: Any, std: Any) -> Pixels:
    if not np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
    return (pixels - _per_channel(mean, "image_mean", pixels)) / _per_channel(std, "image_std", pixels)


def _per_channel(values: Any, name: str, pixels: Pixels) -> Pixels:
    listed = list(values) if isinstance(values, Sequence) else [values] * len(pixels)
    if len(listed) != len(pixels):
        raise InputError(f"{name} has {len(listed)} values for a picture of {len(pixels)} channels")
    return np.array(listed, dtype=pixels.dtype)[:, None, None]


def _pad(arrays: Sequence[Pixels], size: Size | None) -> list[Pixels]:
    """Black on the right and below, to ``size`` or to the largest picture."""
    if size is not None and "height" not in size:
        raise InputError(f"pad_size {size} needs height and width")
    height = size["height"] if size else max(array.shape[1] for array in arrays)
    width = size["width"] if size else max(array.shape[2] for array in arrays)
    if any(array.shape[1] > height or array.shape[2] > width for array in arrays):
        raise InputError(f"a picture is larger than pad_size {height} x {width}")
    return [np.pad(a, ((0, 0), (0, height - a.shape[1]), (0, width - a.shape[2]))) for a in arrays]


# Options


def _size(value: Any, name: str, square: bool) -> Size:
    """A size as that library writes it: a dictionary with one of its sets of keys."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping) and set(value) in _SIZE_KEYS:
        return dict(value)
    raise InputError(f"{name}={value!r}: a number, (height, width), or a dictionary with height and width")


_SIZE_KEYS: tuple[set[str], ...] = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)


def _validate(options: Mapping[str, Any]) -> None:
    rules: list[tuple[bool, str]] = [
        (options["return_tensors"] in TENSOR_TYPES, "return_tensors is 'pt', 'np' or None"),
        (not options["do_center_crop"] or options["crop_size"] is not None, "do_center_crop needs a crop_size"),
        (options["resample"] in range(6), "resample is one of PIL's filters, 0 to 5"),
    ]
    rules += [
        (options[name] in _FORMATS, f"{name}: one of {_FORMATS}") for name in ("data_format", "input_data_format")
    ]
    for holds, rule in rules:
        if not holds:
            raise InputError(rule)
