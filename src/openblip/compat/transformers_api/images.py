"""`BlipImageProcessor`: images to normalized pixels, in the steps of the PIL processor of `transformers`.

As in `transformers`, the EXIF orientation is applied to image files, and not to open PIL images. Pipelines use
`openblip.preprocess.image` instead.

Shapes: C channels, H height, W width; images are (C, H, W).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.files import PushToHub, StrPath, Values, local_folder, write_text
from openblip.compat.transformers_api.image_transforms import (
    Pixels,
    Size,
    center_crop,
    pad,
    per_channel,
    resize,
    target_size,
    to_channels_first,
)
from openblip.compat.transformers_api.tensors import check_tensor_type, is_tensor
from openblip.errors import CheckpointError, ImageError, InputError, UnsupportedTaskError
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from torch import Tensor

OpenImage: TypeAlias = "Image.Image | Pixels | Tensor"
Images: TypeAlias = "OpenImage | list[Images]"

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
# Order of the positional arguments of transformers 4, after the images.
_POSITIONAL = (
    *("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("return_tensors", "do_convert_rgb", "data_format", "input_data_format"),
)
_CALL_ONLY = ("return_tensors", "data_format", "input_data_format")
_WITHOUT_EFFECT = ("device", "disable_grouping", "image_seq_length")  # also in transformers' PIL processor
OPTIONS = frozenset((*_DEFAULTS, *_CALL_ONLY, *_WITHOUT_EFFECT))
"""Names of all options of `BlipImageProcessor.preprocess`."""

_FORMATS = (None, "channels_first", "channels_last")


class BlipImageProcessor(PushToHub):
    """Resizes images to a square without keeping the aspect ratio, rescales values to 0..1, and normalizes them.

    Args:
        **settings: Defaults of the options of `preprocess`. Unknown settings are stored and saved, without effect.
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
                setattr(self, name, _parse_size(value, name, name != "size" or self.default_to_square))
        for name, value in settings.items():
            self._settings.append(name)
            setattr(self, name, value)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Process images.

        Args:
            images: Images as in `preprocess`.
            *args: Positional options of `preprocess`.
            **kwargs: Options of `preprocess`.
        """
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Process images.

        Args:
            images: An image or a list of images: PIL images, arrays or tensors (also batches), paths, URLs or base64.
            *args: Options in the order of transformers 4.
            **kwargs: Settings of the constructor; `return_tensors` ("pt", "np", "tf" or "jax"); `data_format` of the
                result and `input_data_format` ("channels_first" or "channels_last"). `None` disables a `do_...` step;
                for other options it means the stored setting.

        Returns:
            `pixel_values`: a list of float32 arrays, or one tensor or array with `return_tensors`.

        Raises:
            InputError: If an option or an image is invalid.
            ImageError: If an image cannot be read.
            TypeError: If there is no such option.
        """
        options = self._resolve_options(args, kwargs)
        arrays = [self._process(image, options) for image in flatten_images(fetch_images(images))]
        if options["do_pad"]:
            arrays = pad(arrays, options["pad_size"])
        if options["data_format"] == "channels_last":
            arrays = [array.transpose(1, 2, 0) for array in arrays]
        return BatchFeature({"pixel_values": arrays}, tensor_type=options["return_tensors"])

    def fetch_images(self, image_url_or_urls: Any) -> Images:
        """Open images.

        Args:
            image_url_or_urls: Paths, URLs, base64 or images, in lists of any depth.

        Returns:
            The images, in lists of the same structure.
        """
        return fetch_images(image_url_or_urls)

    def _resolve_options(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Values:
        if len(args) > len(_POSITIONAL):
            raise TypeError(f"preprocess takes at most {len(_POSITIONAL)} options by position")
        overrides = dict(zip(_POSITIONAL, args, strict=False))
        duplicates = set(overrides) & set(kwargs)
        if duplicates:
            raise TypeError(f"preprocess got {', '.join(sorted(duplicates))} twice")
        overrides.update(kwargs)
        for name in overrides:
            if name not in OPTIONS:
                raise TypeError(f"preprocess has no option {name!r}")
        options = {name: getattr(self, name) for name in _DEFAULTS} | dict.fromkeys(_CALL_ONLY)
        options |= {name: value for name, value in overrides.items() if value is not None or name.startswith("do_")}
        for name in ("size", "crop_size", "pad_size"):
            if options[name] is not None:
                options[name] = _parse_size(options[name], name, name != "size" or options["default_to_square"])
        _check_options(options)
        return options

    def _process(self, image: Any, options: Mapping[str, Any]) -> Pixels:
        """Apply all steps to an image."""
        pixels = to_channels_first(image, options["do_convert_rgb"], options["input_data_format"])
        if options["do_resize"]:
            target = target_size(pixels.shape[1:], options["size"])
            pixels = resize(pixels, target, options["resample"])
        if options["do_center_crop"]:
            pixels = center_crop(pixels, options["crop_size"])
        if options["do_rescale"]:
            pixels = (pixels.astype(np.float64) * options["rescale_factor"]).astype(np.float32)
        if options["do_normalize"]:
            if not np.issubdtype(pixels.dtype, np.floating):
                pixels = pixels.astype(np.float32)
            mean = per_channel(options["image_mean"], "image_mean", pixels)
            pixels = (pixels - mean) / per_channel(options["image_std"], "image_std", pixels)
        return pixels

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: StrPath, *, return_unused_kwargs: Literal[False] = ..., **kwargs: Any
    ) -> BlipImageProcessor: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: StrPath, *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[BlipImageProcessor, Values]: ...

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: StrPath, *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> BlipImageProcessor | tuple[BlipImageProcessor, Values]:
        """Load `processor_config.json` or `preprocessor_config.json`.

        Args:
            pretrained_model_name_or_path: Local folder or file, or hub id.
            return_unused_kwargs: Also return the arguments that are not settings.
            **kwargs: Settings to override, and the location of the files (`revision`, `cache_dir`, `subfolder`, ...).

        Returns:
            The processor, and unused arguments with `return_unused_kwargs`.

        Raises:
            CheckpointError: If there is no such file.
        """
        folder, kwargs = local_folder(pretrained_model_name_or_path, kwargs)
        values = _read_settings(folder)
        if return_unused_kwargs:
            return cls.from_dict(values, return_unused_kwargs=True, **kwargs)
        return cls.from_dict(values, **kwargs)

    @overload
    @classmethod
    def from_dict(
        cls, image_processor_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[False] = ..., **kwargs: Any
    ) -> BlipImageProcessor: ...

    @overload
    @classmethod
    def from_dict(
        cls, image_processor_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[BlipImageProcessor, Values]: ...

    @classmethod
    def from_dict(
        cls, image_processor_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> BlipImageProcessor | tuple[BlipImageProcessor, Values]:
        """Create a processor from settings.

        Args:
            image_processor_dict: The settings.
            return_unused_kwargs: Also return the arguments that are not settings.
            **kwargs: Settings to override.

        Returns:
            The processor, and unused arguments with `return_unused_kwargs`.
        """
        overrides = {name: value for name, value in kwargs.items() if name in _DEFAULTS}
        processor = cls(**{**image_processor_dict, **overrides})
        unused = {name: value for name, value in kwargs.items() if name not in overrides}
        return (processor, unused) if return_unused_kwargs else processor

    def to_dict(self) -> Values:
        """Return the settings as JSON values.

        Returns:
            The settings as JSON values.
        """
        values = {name: getattr(self, name) for name in self._settings if name != "default_to_square"}
        values = {name: value for name, value in values.items() if value is not None}
        values["resample"] = int(values["resample"])
        return {**values, "image_processor_type": "BlipImageProcessor"}

    def to_json_string(self) -> str:
        """Return the content of `preprocessor_config.json`.

        Returns:
            The content of `preprocessor_config.json`.
        """
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: StrPath) -> None:
        """Write the settings to a file.

        Args:
            json_file_path: The file.
        """
        write_text(Path(json_file_path), self.to_json_string())

    @classmethod
    def from_json_file(cls, json_file: StrPath) -> BlipImageProcessor:
        """Read the settings from a file.

        Args:
            json_file: The file.

        Returns:
            The processor.
        """
        return cls(**json.loads(Path(json_file).read_text(encoding="utf-8")))

    def save_pretrained(self, save_directory: StrPath, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write `preprocessor_config.json`, which `transformers` reads, too.

        Args:
            save_directory: Folder to write to.
            push_to_hub: Upload the folder to the hub.
            **kwargs: Arguments of `push_to_hub`.

        Returns:
            The path of the file, in a list.
        """
        path = Path(save_directory) / "preprocessor_config.json"
        write_text(path, self.to_json_string())
        self._push(Path(save_directory), push_to_hub, kwargs)
        return [str(path)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class BlipImageProcessorFast:
    """The name of the torchvision processor of transformers 4, which differs from the PIL processor in its resize.

    OpenBLIP's `BlipImageProcessor` equals the PIL processor, and so does training. There is no second one.

    Args:
        *args: Arguments of the torchvision processor.
        **kwargs: Arguments of the torchvision processor.

    Raises:
        UnsupportedTaskError: Always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedTaskError(
            "BlipImageProcessorFast resizes by torchvision, which is not included: use BlipImageProcessor, which "
            "equals the PIL processor of transformers (BlipImageProcessorPil)"
        )

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> BlipImageProcessorFast:
        """Raise an error; see the class.

        Args:
            *args: Ignored.
            **kwargs: Ignored.

        Returns:
            Never.

        Raises:
            UnsupportedTaskError: Always.
        """
        return cls()


_NOT_SETTINGS = ("feature_extractor_type", "image_processor_type", "processor_class", "_processor_class")


def _read_settings(folder: Path) -> Values:
    if folder.is_file():
        return dict(json.loads(folder.read_text(encoding="utf-8")))
    nested = folder / "processor_config.json"
    if nested.is_file():
        values = json.loads(nested.read_text(encoding="utf-8"))
        if "image_processor" in values:
            return dict(values["image_processor"])
    plain = folder / "preprocessor_config.json"
    if not plain.is_file():
        raise CheckpointError(f"{folder} must have processor_config.json or preprocessor_config.json")
    return dict(json.loads(plain.read_text(encoding="utf-8")))


def fetch_images(images: Any) -> Images:
    """Open paths, URLs and base64, in lists of any depth. Images are returned as they are.

    Args:
        images: Paths, URLs, base64 or images, in lists of any depth.

    Returns:
        The images, in lists of the same structure.

    Raises:
        TypeError: If an entry is not an image.
        ImageError: If an image cannot be read.
    """
    if isinstance(images, list | tuple):
        return [fetch_images(image) for image in images]
    if isinstance(images, str):
        return _open_image(images)
    if _is_image(images):
        opened: OpenImage = images
        return opened
    raise TypeError(f"an image must be a PIL image, an array, a tensor, a path or a URL, got {type(images)}")


def _open_image(name: str) -> Image.Image:
    if name.startswith(("http://", "https://")):
        return load_image(name)
    source: str | io.BytesIO = name
    if not Path(name).is_file():
        try:
            source = io.BytesIO(base64.b64decode(name.split(",")[1] if name.startswith("data:image/") else name))
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"an image must be a file, a URL or base64, got {name[:100]!r}") from error
    try:
        return ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    except UnidentifiedImageError as error:
        raise ImageError(f"{name[:100]!r} is not an image that Pillow can read") from error


def flatten_images(images: Any) -> list[OpenImage]:
    """Return single images.

    Args:
        images: An image, a batch of images, or lists of these, at most two deep.

    Returns:
        Single images.

    Raises:
        InputError: If an image does not have three axes, or a batch four.
    """
    if isinstance(images, list | tuple):
        if images and all(isinstance(image, list | tuple) for image in images):
            return [image for group in images for image in flatten_images(group)]
        if images and all(_is_image(image) for image in images):
            if isinstance(images[0], Image.Image) or images[0].ndim == 3:
                return list(images)
            if images[0].ndim == 4:
                return [image for batch in images for image in batch]
    elif isinstance(images, Image.Image) or (_is_image(images) and images.ndim == 3):
        return [images]
    elif _is_image(images) and images.ndim == 4:
        return list(images)
    raise InputError("images must be images with three axes, batches with four axes, or lists of these")


def _is_image(value: object) -> bool:
    return isinstance(value, Image.Image | np.ndarray) or is_tensor(value)


def _parse_size(value: Any, name: str, square: bool) -> Size:
    """Return a size in the form of `transformers`: a dictionary with one of `_SIZE_KEYS`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping) and set(value) in _SIZE_KEYS:
        return dict(value)
    raise InputError(f"{name} must be a number, (height, width), or a dict with height and width, got {value!r}")


_SIZE_KEYS: tuple[set[str], ...] = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)


def _check_options(options: Mapping[str, Any]) -> None:
    check_tensor_type(options["return_tensors"])
    if options["do_center_crop"] and options["crop_size"] is None:
        raise InputError("do_center_crop needs a crop_size")
    if options["resample"] not in range(6):
        raise InputError(f"resample must be a filter of PIL, from 0 to 5, got {options['resample']!r}")
    for name in ("data_format", "input_data_format"):
        if options[name] not in _FORMATS:
            raise InputError(f"{name} must be one of {_FORMATS}, got {options[name]!r}")
