"""VisDial: dialogs about captioned images, with a right and a wrong answer to the last question."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openblip.data.augment import Resize, Transform
from openblip.data.collate import as_tensor, pad_rows, stack_images, tokenize
from openblip.data.records import Record
from openblip.data.samples import VisdialSample
from openblip.data.sources.base import Counts
from openblip.data.tasks.base import DataOptions, TaskData
from openblip.data.views import ViewCache, read_view
from openblip.data.visdial import dialog_ids
from openblip.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VisdialData(TaskData[VisdialSample]):
    """Rounds of dialogs about captioned images. The questions of a record are its rounds, and each is a sample.

    Attributes:
        transform: Makes pixels of an image.
        draw: Draw the wrong answer from the options; otherwise take the first wrong option.
        max_tokens: Tokens kept of a caption or a dialog; a longer dialog loses its beginning.
    """

    transform: Transform | ViewCache = field(default_factory=Resize)
    draw: bool = True
    max_tokens: int = 256
    needs: ClassVar[str] = "one image, a caption and questions with a right answer and wrong ones"

    @classmethod
    def from_options(cls, options: DataOptions) -> VisdialData:
        """Build the data class from the options of a recipe."""
        options.refuse("visdial", "packed", "texts_per_image", "max_words")
        training = options.augment is not None
        return cls(tokenizer=options.tokenizer, transform=options.transform(), draw=training, **options.limits)

    def num_samples(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of samples (N,) in each of N records."""
        usable = (counts["images"] == 1) & (counts["captions"] > 0)
        return counts["answered"] * usable.astype(np.int64)

    def make_sample(self, record: Record, index: int, rng: random.Random) -> VisdialSample:
        """Make sample `index` of a record."""
        rounds = [question for question in record.questions if question.answers]
        question = rounds[index]
        if not question.wrong:
            raise InputError(f"the question {question.text!r} needs wrong answers next to its right answer, got none")
        wrong = rng.choice(question.wrong) if self.draw else question.wrong[0]
        dialogs = dialog_ids(
            self.tokenizer.spell,
            [(previous.text, previous.answers[0]) for previous in rounds[:index]],
            question.text,
            [question.answers[0], wrong],
            first_id=self.tokenizer.enc_id,
            last_id=self.tokenizer.sep_id,
            max_tokens=self.max_tokens,
        )
        image = read_view(self.transform, record.images[0], rng)
        return VisdialSample(images=[image], texts=[record.captions[0]], image_id=record.image_id, dialogs=dialogs)

    def make_batch(self, samples: Sequence[VisdialSample]) -> dict[str, Tensor]:
        """Return the tensors of I images with two dialogs each, first the one with the right answer.

        `pixels` (I, S, S, 3); `caption_ids` and `caption_mask` (I, T'); `ids` and `mask` (2 I, T); `labels` (2 I,).
        """
        captions = [sample.texts[0] for sample in samples]
        return {
            "pixels": stack_images(samples),
            **tokenize(self.tokenizer, captions, "cls", self.max_tokens, prefix="caption_"),
            **pad_rows([row for sample in samples for row in sample.dialogs], self.tokenizer.pad_id),
            "labels": as_tensor([1, 0] * len(samples)),
        }
