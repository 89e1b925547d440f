"""Processors: an image to a tensor (3, S, S), or a text to a cleaned text."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
from torch import Tensor

from openblip.data.augment import TrainTransform
from openblip.data.randaugment import RandAugment
from openblip.errors import InputError
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.preprocess.text import clean_caption, clean_question

ProcessorT = TypeVar("ProcessorT", bound="BaseProcessor")


class BaseProcessor:
    """Base class of the processors."""

    @classmethod
    def from_config(cls: type[ProcessorT], cfg: Mapping[str, Any] | None = None) -> ProcessorT:
        """Create a processor from settings.

        Args:
            cfg: Arguments of the constructor; other entries are ignored.

        Returns:
            The processor.
        """
        parameters = inspect.signature(cls).parameters
        return cls(**{name: value for name, value in (cfg or {}).items() if name in parameters})


class BlipImageEvalProcessor(BaseProcessor):
    """Resizes an image to the model's square and normalizes it.

    Args:
        image_size: Edge of the square in pixels.
        mean: Mean of each channel; by default as in BLIP.
        std: Standard deviation of each channel; by default as in BLIP.
    """

    def __init__(
        self, image_size: int = 384, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        self.settings = _settings(image_size, mean, std)

    def __call__(self, item: Any) -> Tensor:
        """Return an image as a tensor (3, S, S).

        Args:
            item: An image that `openblip.load` accepts.
        """
        return to_tensor(resize(load_image(item), self.settings.size)[None], self.settings)[0]


class BlipImageTrainProcessor(BaseProcessor):
    """Returns random views of an image: crop, flip and RandAugment(2, 5), drawn by `random`.

    Args:
        image_size: Edge of the square in pixels.
        mean: Mean of each channel; by default as in BLIP.
        std: Standard deviation of each channel; by default as in BLIP.
        min_scale: Smallest area of a crop, as a fraction of the image.
        max_scale: Must be 1.

    Raises:
        InputError: If `max_scale` is not 1.
    """

    def __init__(
        self,
        image_size: int = 384,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
    ) -> None:
        if max_scale != 1.0:
            raise InputError(f"max_scale must be 1, got {max_scale}")
        self.settings, self.min_scale = _settings(image_size, mean, std), min_scale

    def __call__(self, item: Any) -> Tensor:
        """Return a random view of an image as a tensor (3, S, S).

        Args:
            item: An image that `openblip.load` accepts.
        """
        transform = TrainTransform(self.settings, min_scale=self.min_scale, randaugment=RandAugment())
        pixels = transform(load_image(item), random.Random(random.getrandbits(64)))
        return to_tensor(np.ascontiguousarray(pixels)[None], self.settings)[0]


class BlipCaptionProcessor(BaseProcessor):
    """Cleans captions as in training, and adds a prompt.

    Args:
        prompt: Text before each caption.
        max_words: Maximum number of words.
    """

    def __init__(self, prompt: str = "", max_words: int = 50) -> None:
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, caption: str) -> str:
        """Return the prompt and the cleaned caption."""
        return self.prompt + self.pre_caption(caption)

    def pre_caption(self, caption: str) -> str:
        """Return the cleaned caption, without the prompt.

        Args:
            caption: The caption.

        Returns:
            The cleaned caption, without the prompt.
        """
        return clean_caption(caption, self.max_words)


class BlipQuestionProcessor(BaseProcessor):
    """Cleans questions as in training.

    Args:
        max_words: Maximum number of words.
    """

    def __init__(self, max_words: int = 50) -> None:
        self.max_words = max_words

    def __call__(self, question: str) -> str:
        """Return the cleaned question."""
        return self.pre_question(question)

    def pre_question(self, question: str) -> str:
        """Return the cleaned question.

        Args:
            question: The question.

        Returns:
            The cleaned question.
        """
        return clean_question(question, self.max_words)


def _settings(size: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageSettings:
    settings = ImageSettings(size=size)
    if mean is not None:
        red, green, blue = mean
        settings = replace(settings, mean=(red, green, blue))
    if std is not None:
        red, green, blue = std
        settings = replace(settings, std=(red, green, blue))
    return settings


Processor: TypeAlias = Callable[[Any], Any]
"""An image to a tensor (3, S, S), or a text to a cleaned text."""
Processors: TypeAlias = dict[str, Processor]
"""The processors "train" and "eval"."""
PROCESSORS: Mapping[str, Callable[..., Processor]] = {
    "blip_image_eval": BlipImageEvalProcessor,
    "blip_image_train": BlipImageTrainProcessor,
    "blip_caption": BlipCaptionProcessor,
    "blip_question": BlipQuestionProcessor,
}


@dataclass(frozen=True)
class ProcessorBuilder:
    """A named processor. Call it to process an item with default settings, or `build` it with other settings.

    Attributes:
        name: Name of the processor.
    """

    name: str

    def build(self, **settings: Any) -> Processor:
        """Return the processor.

        Args:
            **settings: Arguments of its constructor.

        Returns:
            The processor.
        """
        return PROCESSORS[self.name](**settings)

    def __call__(self, item: Any) -> Any:
        return self.build()(item)


@overload
def load_processor(name: str, cfg: None = None) -> ProcessorBuilder: ...


@overload
def load_processor(name: str, cfg: Mapping[str, Any]) -> Processor: ...


def load_processor(name: str, cfg: Mapping[str, Any] | None = None) -> Processor | ProcessorBuilder:
    """Return a processor by name.

    Args:
        name: "blip_image_eval", "blip_image_train", "blip_caption" or "blip_question".
        cfg: Arguments of the constructor.

    Returns:
        The processor; without `cfg`, a builder such as `load_processor("blip_image_eval").build(image_size=384)`.

    Raises:
        InputError: If there is no such processor.
    """
    if name not in PROCESSORS:
        raise InputError(f"processor must be one of {', '.join(PROCESSORS)}, got {name!r}")
    return ProcessorBuilder(name) if cfg is None else ProcessorBuilder(name).build(**cfg)


def task_processors(task: str, settings: ImageSettings) -> tuple[Processors, Processors]:
    """Return the image and the text processors of a model, each for "train" and "eval".

    Args:
        task: Task of the model.
        settings: Image settings of the model.

    Returns:
        The image and the text processors of a model, each for "train" and "eval".
    """
    options = (settings.size, settings.mean, settings.std)
    images: Processors = {"train": BlipImageTrainProcessor(*options), "eval": BlipImageEvalProcessor(*options)}
    if task == "vqa":
        return images, {"train": BlipQuestionProcessor(), "eval": BlipQuestionProcessor()}
    prompt = "a picture of " if task == "caption" else ""
    return images, {"train": BlipCaptionProcessor(prompt), "eval": BlipCaptionProcessor()}
