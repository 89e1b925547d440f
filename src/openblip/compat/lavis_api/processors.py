"""Processors: pictures to tensors (3, S, S) and texts to cleaned texts, one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from openblip.data.augment import RandAugment, TrainTransform
from openblip.errors import InputError
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.preprocess.text import clean_caption, clean_question


@dataclass(frozen=True)
class ImageEvalProcessor:
    """A picture, whole, in the model's square, normalised."""

    settings: ImageSettings = field(default_factory=ImageSettings)

    def __call__(self, image: Any) -> Tensor:
        """(3, S, S) of whatever holds a picture."""
        return to_tensor(resize(load_image(image), self.settings.size)[None], self.settings)[0]


@dataclass(frozen=True)
class ImageTrainProcessor:
    """A random view of a picture: crop, mirror, RandAugment(2, 5); draws come from ``random`` as they come there."""

    settings: ImageSettings = field(default_factory=ImageSettings)
    min_scale: float = 0.5

    def __call__(self, image: Any) -> Tensor:
        """(3, S, S) of whatever holds a picture."""
        change = TrainTransform(self.settings, min_scale=self.min_scale, randaugment=RandAugment())
        pixels = change(load_image(image), random.Random(random.getrandbits(64)))
        return to_tensor(np.ascontiguousarray(pixels)[None], self.settings)[0]


@dataclass(frozen=True)
class CaptionProcessor:
    """A caption as training saw it, after a prompt."""

    prompt: str = ""
    max_words: int = 50

    def __call__(self, caption: str) -> str:
        """The cleaned caption."""
        return self.prompt + clean_caption(caption, self.max_words)


@dataclass(frozen=True)
class QuestionProcessor:
    """A question as training saw it."""

    max_words: int = 50

    def __call__(self, question: str) -> str:
        """The cleaned question."""
        return clean_question(question, self.max_words)


Processor = ImageEvalProcessor | ImageTrainProcessor | CaptionProcessor | QuestionProcessor


def _image(kind: Callable[..., Processor]) -> Callable[..., Processor]:
    def build(
        image_size: int = 384, mean: Any = None, std: Any = None, min_scale: float = 0.5, max_scale: float = 1.0
    ) -> Processor:
        if max_scale != 1.0:
            raise InputError(f"max_scale {max_scale} is not supported: a crop takes up to all of the picture")
        usual = ImageSettings(size=image_size)
        settings = ImageSettings(image_size, tuple(mean or usual.mean), tuple(std or usual.std))
        return kind(settings, min_scale) if kind is ImageTrainProcessor else kind(settings)

    return build


_KINDS: Mapping[str, Callable[..., Processor]] = {
    "blip_image_eval": _image(ImageEvalProcessor),
    "blip_image_train": _image(ImageTrainProcessor),
    "blip_caption": CaptionProcessor,
    "blip_question": QuestionProcessor,
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
    images = {"train": ImageTrainProcessor(settings), "eval": ImageEvalProcessor(settings)}
    if task == "answer":
        return images, {"train": QuestionProcessor(), "eval": QuestionProcessor()}
    prompt = "a picture of " if task == "caption" else ""
    return images, {"train": CaptionProcessor(prompt), "eval": CaptionProcessor()}
