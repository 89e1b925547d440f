"""Image settings of a checkpoint: a frozen dataclass, without torch, and its form in the files of the hub."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from openblip.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ProcessorConfig(TypedDict):
    """The content of `preprocessor_config.json`."""

    do_convert_rgb: bool
    do_normalize: bool
    do_rescale: bool
    do_resize: bool
    image_mean: list[float]
    image_processor_type: str
    image_std: list[float]
    processor_class: str
    resample: int
    rescale_factor: float
    size: dict[str, int]


@dataclass(frozen=True)
class ImageSettings:
    """Size and normalization of images.

    Attributes:
        size: Side of the square that images are resized to, in pixels.
        mean: Mean of R, G and B on a scale from 0 to 1.
        std: Standard deviation of R, G and B on a scale from 0 to 1.
    """

    size: int = 384
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ConfigError(f"mean and std must have three finite numbers each, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    @classmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> ImageSettings:
        """Create settings from `preprocessor_config.json`, or from the `image_processor` of `processor_config.json`.

        Missing entries have the values of BLIP. A different `rescale_factor`, `do_rescale=False` and
        `do_normalize=False` are expressed by mean and standard deviation.

        Args:
            config: Content of the file.

        Returns:
            The settings.

        Raises:
            ConfigError: The file asks for something else than resizing to a square with a bicubic filter.
        """
        config = config.get("image_processor", config)
        resample = config.get("resample", 3)
        if resample not in (3, "bicubic"):
            raise ConfigError(f"resample must be 3 (bicubic), got {resample}")
        if not config.get("do_resize", True):
            raise ConfigError("do_resize must be true, because the model needs images of one size")
        for step in ("do_center_crop", "do_pad"):
            if config.get(step):
                raise ConfigError(f"{step} must be false, because BLIP resizes the entire image")
        # Images are rescaled by a factor f, and (f x - mean) / std = (x / 255 - mean / 255f) / (std / 255f).
        scale = 255.0
        if _get(config, "do_rescale", True):
            scale = 255 * float(_get(config, "rescale_factor", 1 / 255))
        if not math.isfinite(scale) or scale <= 0:
            raise ConfigError(f"rescale_factor must be positive, got {config.get('rescale_factor')}")
        scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
        mean, std = _get_triple(config, "image_mean", CLIP_MEAN), _get_triple(config, "image_std", CLIP_STD)
        if not _get(config, "do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        size = _get(config, "size", cls.size)
        if isinstance(size, Mapping) and set(size) == {"height", "width"} and size["height"] == size["width"]:
            size = size["height"]
        if not isinstance(size, int):
            raise ConfigError(f"size must be a number, or an equal height and width, got {size!r}")
        return cls(
            size,
            (mean[0] / scale, mean[1] / scale, mean[2] / scale),
            (std[0] / scale, std[1] / scale, std[2] / scale),
        )

    @classmethod
    def from_folder(cls, files: Mapping[str, Mapping[str, Any]], *, default_size: int) -> ImageSettings:
        """Return the settings of a hub folder.

        They are in `processor_config.json` if it has an image processor (in `transformers` 4 it has only the
        tokenizer), otherwise in `preprocessor_config.json`.

        Args:
            files: The content of the folder's JSON files, by name.
            default_size: Image size if the folder has no image processor.

        Returns:
            The settings.

        Raises:
            ConfigError: If the file asks for a transform that is not supported. The message names the file.
        """
        name = "preprocessor_config.json"
        combined = files.get("processor_config.json")
        if combined is not None and ("image_processor" in combined or name not in files):
            name = "processor_config.json"
        if name not in files:
            return cls(size=default_size)
        try:
            return cls.from_processor_config(files[name])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def to_processor_config(self) -> ProcessorConfig:
        """Return the `preprocessor_config.json` from which transformers 4 and 5 build the same transform."""
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "BlipImageProcessor",
            "image_std": list(self.std),
            "processor_class": "BlipProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": self.size, "width": self.size},
        }


def _get(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return an entry, or the default if it is missing or `null`."""
    value = config.get(key)
    return default if value is None else value


def _get_triple(config: Mapping[str, Any], key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    value = _get(config, key, default)
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(x, (int, float)) for x in values)
    ):
        raise ConfigError(f"{key} must be three numbers, for R, G and B, got {value!r}")
    return float(values[0]), float(values[1]), float(values[2])
