"""Visual question answering: questions with weighted answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openblip.data.augment import Resize, Transform
from openblip.data.collate import as_tensor, stack_images, tokenize
from openblip.data.records import Record
from openblip.data.samples import VqaSample
from openblip.data.sources.base import Counts
from openblip.data.tasks.base import (
    DataOptions,
    TaskData,
    check_texts_per_image,
    choose,
    image_indices,
    samples_per_record,
)
from openblip.data.views import ViewCache, read_view
from openblip.errors import InputError
from openblip.preprocess.text import clean_question


@dataclass(frozen=True, kw_only=True)
class VqaData(TaskData[VqaSample]):
    """Images with questions. Answers are not cleaned.

    Attributes:
        transform: Makes pixels of an image.
        texts_per_image: As published, `None` makes every question a sample with its image. With n, an image is one
            sample with up to n of its questions, drawn at random each time.
        vg_weight: Weight of an answer from Visual Genome.
        max_words: Words kept of a question.
        max_tokens: Tokens kept of a question.
        max_answer_tokens: Tokens kept of an answer; `None` keeps all.
    """

    transform: Transform | ViewCache = field(default_factory=Resize)
    texts_per_image: int | None = None
    vg_weight: float = 0.2
    max_words: int = 50
    max_tokens: int = 35
    max_answer_tokens: int | None = None
    needs: ClassVar[str] = "one image and a question with an answer"

    def __post_init__(self) -> None:
        check_texts_per_image(self.texts_per_image)

    @classmethod
    def from_options(cls, options: DataOptions) -> VqaData:
        """Build the data class from the options of a recipe."""
        options.refuse("vqa", "packed")
        return cls(
            tokenizer=options.tokenizer,
            transform=options.transform(),
            texts_per_image=options.texts_per_image,
            vg_weight=options.vg_weight,
            **options.limits,
        )

    def num_samples(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of samples (N,) in each of N records."""
        return samples_per_record(counts["answered"], self.texts_per_image) * (counts["images"] == 1)

    def make_sample(self, record: Record, index: int, rng: random.Random) -> VqaSample:
        """Make sample `index` of a record."""
        answered = [question for question in record.questions if question.answers]
        questions = choose(answered, index, self.texts_per_image, rng)
        texts = [clean_question(question.text, self.max_words) for question in questions]
        if not all(text.strip() for text in texts):
            raise InputError("a question is empty after cleaning")
        answers = [question.weighted_answers(self.vg_weight) for question in questions]
        image = read_view(self.transform, record.images[0], rng)
        return VqaSample(images=[image], texts=texts, answers=answers, image_id=record.image_id)

    def make_batch(self, samples: Sequence[VqaSample]) -> dict[str, Tensor]:
        """Return the tensors of I images, Q questions and A answers.

        `pixels` (I, S, S, 3); `ids` and `mask` (Q, T); `answer_ids` and `answer_mask` (A, T'); `question_index` (A,),
        the question of each answer; `weights` (A,), its share of the question's answers; and, unless every image has
        one question, `image_index` (Q,), the image of each question.
        """
        questions = [text for sample in samples for text in sample.texts]
        answers = [weighted for sample in samples for weighted in sample.answers]
        texts = [text for weighted in answers for text in weighted]
        batch = {
            "pixels": stack_images(samples),
            **tokenize(self.tokenizer, questions, "enc", self.max_tokens),
            **tokenize(self.tokenizer, texts, "dec", self.max_answer_tokens, prefix="answer_"),
            "question_index": as_tensor([index for index, weighted in enumerate(answers) for _ in weighted]),
            "weights": as_tensor([weight for weighted in answers for weight in weighted.values()]),
        }
        if self.texts_per_image is not None:
            batch["image_index"] = image_indices(samples)
        return batch
