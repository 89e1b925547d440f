"""The interface of data classes, the options they are built from, and the base of tasks on captioned images."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openblip.data.augment import AugmentSettings, Resize, Transform
from openblip.data.collate import as_tensor
from openblip.data.records import Record
from openblip.data.samples import Sample
from openblip.data.sources.base import Counts
from openblip.data.views import ViewCache, read_view
from openblip.errors import ConfigError, InputError
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer, clean_caption

Item = TypeVar("Item")
SampleT = TypeVar("SampleT", bound=Sample)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options from which every data class can be built; a class raises `ConfigError` for an option it lacks.

    Attributes:
        tokenizer: Tokenizer of the model.
        image: Size, mean and standard deviation of the model's pixels.
        augment: Random changes for training; `None` builds the data of an evaluation, without any random draw.
        texts_per_image: Texts drawn for each image; `None` makes every text a sample with its image.
        prompt: Text that every caption starts with.
        vg_weight: Weight of an answer from Visual Genome.
        max_words: Words per text; `None` keeps the published limit of the task.
        max_tokens: Tokens per text; `None` keeps the published limit of the task.
        packed: Put the captions of an image in one row.
        views: Cached features that stand for the images; `None` reads the images.
    """

    tokenizer: Tokenizer
    image: ImageSettings
    augment: AugmentSettings | None = None
    texts_per_image: int | None = None
    prompt: str = ""
    vg_weight: float = 0.2
    max_words: int | None = None
    max_tokens: int | None = None
    packed: bool = False
    views: ViewCache | None = None

    @property
    def limits(self) -> dict[str, int]:
        """The limits that are set, by name."""
        limits = {"max_words": self.max_words, "max_tokens": self.max_tokens}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def transform(self) -> Transform | ViewCache:
        """Return the transform of a single image, or the cache that stands for it."""
        if self.views is not None:
            return self.views
        return Resize(self.image.size) if self.augment is None else self.augment.transform(self.image)

    def refuse(self, task: str, *names: str) -> None:
        """Raise `ConfigError` if one of the options in `names` is set."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise ConfigError(f"data.{name} does not apply to {task}; remove it")


@dataclass(frozen=True, kw_only=True)
class TaskData(ABC, Generic[SampleT]):
    """Makes samples of records and batches of samples. Instances are immutable and travel to worker processes.

    Tensors are named like the fields of the objective's batch. Pixels are bytes (B, S, S, 3) until
    `normalize_batch` moves them to the model's device. Text limits count special tokens; word limits apply first.
    """

    tokenizer: Tokenizer
    needs: ClassVar[str] = "one image"

    @classmethod
    @abstractmethod
    def from_options(cls, options: DataOptions) -> TaskData[SampleT]:
        """Build the data class from the options of a recipe."""

    @abstractmethod
    def num_samples(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of samples (N,) in each of N records with these `Record.counts`."""

    def count_samples(self, record: Record) -> int:
        """Return the number of samples in one record."""
        counts = {name: np.array([count], np.int32) for name, count in record.counts().items()}
        return int(self.num_samples(counts)[0])

    @abstractmethod
    def make_sample(self, record: Record, index: int, rng: random.Random) -> SampleT:
        """Make sample `index` of a record.

        Raises:
            OpenBlipError: If an image or a text cannot be used.
        """

    @abstractmethod
    def make_batch(self, samples: Sequence[SampleT]) -> dict[str, Tensor]:
        """Return samples as named tensors."""


@dataclass(frozen=True, kw_only=True)
class CaptionedData(TaskData[Sample]):
    """Base of the tasks on captioned images.

    Attributes:
        transform: Makes pixels of an image, or reads its cached features.
        texts_per_image: As published, `None` makes every caption a sample with its image. With n, an image is one
            sample with n of its captions, drawn at random each time and repeated if the image has fewer.
        max_words: Words kept of a caption.
    """

    transform: Transform | ViewCache = field(default_factory=Resize)
    texts_per_image: int | None = None
    max_words: int = 30
    needs: ClassVar[str] = "one image and a caption"

    def __post_init__(self) -> None:
        check_texts_per_image(self.texts_per_image)

    def num_samples(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of samples (N,) in each of N records."""
        return samples_per_record(counts["captions"], self.texts_per_image) * (counts["images"] == 1)

    def make_sample(self, record: Record, index: int, rng: random.Random) -> Sample:
        """Make sample `index` of a record."""
        texts = [clean_caption(text, self.max_words) for text in record.captions]
        if self.texts_per_image is None:
            texts = texts[index : index + 1]
        texts = [text for text in texts if text]
        if not texts:
            raise InputError("the caption is empty after cleaning")
        if self.texts_per_image is not None:
            rng.shuffle(texts)
            texts = self.draw_texts(texts, self.texts_per_image)
        image = read_view(self.transform, record.images[0], rng)
        return Sample(images=[image], texts=texts, image_id=record.image_id)

    def draw_texts(self, texts: list[str], count: int) -> list[str]:
        """Return `count` of an image's texts, which are in random order."""
        return [texts[i % len(texts)] for i in range(count)]


def check_texts_per_image(count: int | None) -> None:
    """Raise `InputError` unless a number of texts per image is `None` or positive."""
    if count is not None and count < 1:
        raise InputError(f"texts_per_image must be at least 1, got {count}; None makes every text a sample")


def samples_per_record(texts: NDArray[np.int32], texts_per_image: int | None) -> NDArray[np.int64]:
    """Return the samples (N,) of records with one image and `texts` (N,) usable texts."""
    return (texts if texts_per_image is None else texts > 0).astype(np.int64)


def choose(items: Sequence[Item], index: int, limit: int | None, rng: random.Random) -> list[Item]:
    """Return item `index`, or up to `limit` items drawn at random."""
    return [items[index]] if limit is None else rng.sample(items, min(limit, len(items)))


def image_indices(samples: Sequence[Sample]) -> Tensor:
    """Return the image (T,) of each text of a batch."""
    return as_tensor([index for index, sample in enumerate(samples) for _ in sample.texts])
