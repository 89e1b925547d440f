"""How a checkpoint wants its pictures: a frozen dataclass, free of torch, and its form in the hub's files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openblip.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageSettings:
    """The side of the model's square in pixels, and mean and deviation of R, G and B on the 0..1 scale."""

    size: int = 384
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"an image size is a number of pixels, not {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ConfigError(
                f"mean and std are three finite numbers each, for R, G and B, not {self.mean}, {self.std}"
            )
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, not {self.std}")

    @classmethod
    def from_processor_config(cls, config: Mapping[str, Any]) -> ImageSettings:
        """From ``preprocessor_config.json``, or from ``processor_config.json``, which nests it as ``image_processor``.

        What is missing has BLIP's usual value. Another rescaling, or none, and a missing normalisation are folded into
        mean and std. ``ConfigError`` for what this transform does not do: another resampling, no resizing, a size that
        is no square, cropping, padding.
        """
        config = config.get("image_processor", config)
        if (resample := config.get("resample", 3)) not in (3, "bicubic"):
            raise ConfigError(f"resample {resample} is not supported: pictures are resized bicubically (3)")
        if not config.get("do_resize", True):
            raise ConfigError("do_resize false is not supported: the model needs every picture in its own square")
        for step in ("do_center_crop", "do_pad"):
            if config.get(step):
                raise ConfigError(f"{step} is not supported: BLIP resizes the whole picture")
        # A picture is rescaled by f, then (f x - mean) / std = (x / 255 - mean / 255f) / (std / 255f).
        scale = (
            255 * float(_or(config.get("rescale_factor"), 1 / 255)) if _or(config.get("do_rescale"), True) else 255.0
        )
        if not math.isfinite(scale) or scale <= 0:
            raise ConfigError(f"rescale_factor {config.get('rescale_factor')} is no positive number")
        scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
        mean, std = _triple(config, "image_mean", CLIP_MEAN), _triple(config, "image_std", CLIP_STD)
        if not _or(config.get("do_normalize"), True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        r, g, b = (x / scale for x in mean)
        deviations = (std[0] / scale, std[1] / scale, std[2] / scale)
        return cls(_side(_or(config.get("size"), cls.size)), (r, g, b), deviations)

    def to_processor_config(self) -> dict[str, Any]:
        """The ``preprocessor_config.json`` from which transformers, 4 or 5, builds the same transform."""
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


def _or(value: Any, usual: Any) -> Any:
    return usual if value is None else value


def _triple(config: Mapping[str, Any], key: str, usual: tuple[float, float, float]) -> tuple[float, float, float]:
    value = _or(config.get(key), usual)
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(x, (int, float)) for x in values)
    ):
        raise ConfigError(f"{key} is three numbers, for R, G and B, not {value!r}")
    return float(values[0]), float(values[1]), float(values[2])


def _side(size: Any) -> int:
    if isinstance(size, Mapping) and set(size) == {"height", "width"} and size["height"] == size["width"]:
        size = size["height"]
    if not isinstance(size, int):
        raise ConfigError(
            f"size {size!r} is not supported: BLIP resizes to a square, a number or equal height and width"
        )
    return size
