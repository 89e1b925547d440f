"""Processors: pictures to tensors (3, S, S) and texts to cleaned texts, one at a time."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from openblip.data.augment import TrainTransform
from openblip.data.randaugment import RandAugment
from openblip.errors import InputError
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.preprocess.text import clean_caption, clean_question

Made = TypeVar("Made", bound="BaseProcessor")


class BaseProcessor:
    """What all processors have."""

    @classmethod
    def from_config(cls: type[Made], cfg: Mapping[str, Any] | None = None) -> Made:
        """The processor with the settings of ``cfg`` that its constructor takes, which may be none."""
        taken = inspect.signature(cls).parameters
        return cls(**{name: value for name, value in (cfg or {}).items() if name in taken})


class BlipImageEvalProcessor(BaseProcessor):
    """A picture, whole, in the model's square, normalised."""

    def __init__(
        self, image_size: int = 384, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        self.settings = _settings(image_size, mean, std)

    def __call__(self, item: Any) -> Tensor:
        """(3, S, S) of whatever holds a picture."""
        return to_tensor(resize(load_image(item), self.settings.size)[None], self.settings)[0]


class BlipImageTrainProcessor(BaseProcessor):
    """A random view of a picture: crop, mirror, RandAugment(2, 5); draws come from ``random`` as they come there."""

    def __init__(
        self,
        image_size: int = 384,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
    ) -> None:
        if max_scale != 1.0:
            raise InputError(f"max_scale {max_scale} is not supported: a crop takes up to all of the picture")
        self.settings, self.min_scale = _settings(image_size, mean, std), min_scale

    def __call__(self, item: Any) -> Tensor:
        """(3, S, S) of whatever holds a picture."""
        change = TrainTransform(self.settings, min_scale=self.min_scale, randaugment=RandAugment())
        pixels = change(load_image(item), random.Random(random.getrandbits(64)))
        return to_tensor(np.ascontiguousarray(pixels)[None], self.settings)[0]


class BlipCaptionProcessor(BaseProcessor):
    """A caption as training saw it, after a prompt."""

    def __init__(self, prompt: str = "", max_words: int = 50) -> None:
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, caption: str) -> str:
        """The cleaned caption."""
        return self.prompt + self.pre_caption(caption)

    def pre_caption(self, caption: str) -> str:
        """The cleaned caption, without the prompt."""
        return clean_caption(caption, self.max_words)


class BlipQuestionProcessor(BaseProcessor):
    """A question as training saw it."""

    def __init__(self, max_words: int = 50) -> None:
        self.max_words = max_words

    def __call__(self, question: str) -> str:
        """The cleaned question."""
        return self.pre_question(question)

    def pre_question(self, question: str) -> str:
        """The cleaned question."""
        return clean_question(question, self.max_words)


def _settings(size: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageSettings:
    usual = ImageSettings(size=size)
    return replace(usual, mean=_three(mean) or usual.mean, std=_three(std) or usual.std)


def _three(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    if values is None:
        return None
    red, green, blue = values
    return red, green, blue


Processor = BlipImageEvalProcessor | BlipImageTrainProcessor | BlipCaptionProcessor | BlipQuestionProcessor
_KINDS: Mapping[str, Callable[..., Processor]] = {
    "blip_image_eval": BlipImageEvalProcessor,
    "blip_image_train": BlipImageTrainProcessor,
    "blip_caption": BlipCaptionProcessor,
    "blip_question": BlipQuestionProcessor,
}


@dataclass(frozen=True)
class Builder:
    """A kind of processor, to be built with settings, or with the usual ones by calling it."""

    kind: str

    def build(self, **settings: Any) -> Processor:
        """The processor with these settings."""
        return _KINDS[self.kind](**settings)

    def __call__(self, item: Any) -> Any:
        return self.build()(item)


def load_processor(name: str, cfg: Mapping[str, Any] | None = None) -> Any:
    """A processor by name: "blip_image_eval", "blip_image_train", "blip_caption" or "blip_question".

    As in that library ``.build(image_size=384)`` gives one with settings of one's own.
    """
    if name not in _KINDS:
        raise InputError(f"unknown processor {name!r}; one of {', '.join(_KINDS)}")
    return Builder(name) if cfg is None else Builder(name).build(**cfg)


def of_task(task: str, settings: ImageSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image and the text processors of a model, each for "train" and "eval"."""
    look = (settings.size, settings.mean, settings.std)
    images = {"train": BlipImageTrainProcessor(*look), "eval": BlipImageEvalProcessor(*look)}
    if task == "vqa":
        return images, {"train": BlipQuestionProcessor(), "eval": BlipQuestionProcessor()}
    prompt = "a picture of " if task == "caption" else ""
    return images, {"train": BlipCaptionProcessor(prompt), "eval": BlipCaptionProcessor()}
