"""NLVR2: statements about two images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openblip.data.augment import Resize, Transform, swap_pair
from openblip.data.collate import as_tensor, stack_images, tokenize
from openblip.data.records import Record
from openblip.data.samples import NlvrSample
from openblip.data.sources.base import Counts
from openblip.data.tasks.base import DataOptions, TaskData
from openblip.data.views import ViewCache, read_view
from openblip.errors import InputError
from openblip.preprocess.text import clean_caption


@dataclass(frozen=True, kw_only=True)
class NlvrData(TaskData[NlvrSample]):
    """Pairs of images with a statement and its label.

    Attributes:
        transform: Makes pixels of an image.
        swap: Exchange the images at random, as in published training; leave it off for evaluation.
        max_words: Words kept of a statement.
        max_tokens: Tokens kept of a statement; `None` keeps all.
    """

    transform: Transform | ViewCache = field(default_factory=Resize)
    swap: bool = False
    max_words: int = 40
    max_tokens: int | None = None
    needs: ClassVar[str] = "two images, a statement and a label"

    @classmethod
    def from_options(cls, options: DataOptions) -> NlvrData:
        """Build the data class from the options of a recipe."""
        options.refuse("nlvr", "packed", "texts_per_image")
        training = options.augment is not None
        return cls(tokenizer=options.tokenizer, transform=options.transform(), swap=training, **options.limits)

    def num_samples(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of samples (N,) in each of N records."""
        usable = (counts["images"] == 2) & (counts["captions"] == 1) & (counts["labeled"] == 1)
        return usable.astype(np.int64)

    def make_sample(self, record: Record, index: int, rng: random.Random) -> NlvrSample:
        """Make sample `index` of a record."""
        text = clean_caption(record.captions[0], self.max_words)
        if not text:
            raise InputError("the statement is empty after cleaning")
        pair = record.images[0], record.images[1]
        if self.swap:
            pair, text = swap_pair(pair, text, rng)
        images = [read_view(self.transform, image, rng) for image in pair]
        return NlvrSample(images=images, texts=[text], label=record.label or 0, image_id=record.image_id)

    def make_batch(self, samples: Sequence[NlvrSample]) -> dict[str, Tensor]:
        """Return `left_pixels` and `right_pixels` (B, S, S, 3), `ids` and `mask` (B, T), and `labels` (B,)."""
        return {
            "left_pixels": stack_images(samples),
            "right_pixels": stack_images(samples, 1),
            **tokenize(self.tokenizer, [sample.texts[0] for sample in samples], "enc", self.max_tokens),
            "labels": as_tensor([sample.label for sample in samples]),
        }
