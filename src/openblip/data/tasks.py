"""From a record to a training sample, and from samples to the tensors of each objective's batch.

A task says how many samples a record gives, makes one of them with random draws that are handed in, and puts a list of
them together. The tensors are named as the fields of the objective's batch; ``pixels`` are still bytes (B, S, S, 3):
:func:`openblip.data.collate.normalised` makes them what the model reads, on whichever device. Text lengths are the
published ones (counted in tokens, special ones included; word limits come before).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from openblip.data.augment import exchange_sides, swap_pair
from openblip.data.boxes import Box, PlainBoxes
from openblip.data.collate import numbers, padded, stack_images, tokens
from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.data.visdial import dialog_ids
from openblip.errors import InputError
from openblip.model.config import CAPTION_PROMPT
from openblip.preprocess.image import resize
from openblip.preprocess.text import Tokenizer, clean_caption, clean_expression, clean_question

Pixels: TypeAlias = NDArray[np.uint8]
Transform: TypeAlias = Callable[[Image.Image, random.Random], Pixels]
Made = TypeVar("Made")
BoxTransform: TypeAlias = Callable[[Image.Image, Sequence[Box], random.Random], tuple[Pixels, list[Box]]]


@dataclass(frozen=True)
class Plain:
    """The transform of evaluation: the whole picture, resized to a square."""

    size: int = 384

    def __call__(self, image: Image.Image, rng: random.Random) -> Pixels:
        """Pixels (S, S, 3); nothing is drawn."""
        return resize(image, self.size)


@dataclass(frozen=True)
class Sample:
    """One unit of a batch: one picture, or two, and what is said of it. Which fields are used depends on the task."""

    pixels: Sequence[Pixels]
    texts: Sequence[str] = ()
    answers: Sequence[Mapping[str, float]] = ()
    boxes: Sequence[Box] = ()
    label: int = 0
    image_id: int = 0
    rows: Sequence[Sequence[int]] = ()  # texts that are put together as ids


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What the tasks share. Instances are immutable and travel to worker processes."""

    tokenizer: Tokenizer
    wants = "one picture"

    @abstractmethod
    def parts(self, counts: Mapping[str, Any]) -> Any:
        """How many samples records give whose :meth:`Record.counts` are ``counts``: integers, or arrays of them."""

    @abstractmethod
    def sample(self, record: Record, part: int, rng: random.Random) -> Sample:
        """Sample ``part`` of a record; an :class:`OpenBlipError` if its picture or text cannot be used."""

    @abstractmethod
    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Samples as tensors."""


@dataclass(frozen=True, kw_only=True)
class _CaptionTask(Task):
    transform: Transform = field(default_factory=Plain)
    captions: int | None = None
    max_words: int = 30
    wants = "one picture and a caption"

    def __post_init__(self) -> None:
        if self.captions is not None and self.captions < 1:
            raise InputError(f"captions is a number of captions for each picture, or None, not {self.captions}")

    def parts(self, counts: Mapping[str, Any]) -> Any:
        each = counts["captions"] if self.captions is None else (counts["captions"] > 0) * 1
        return each * (counts["images"] == 1)

    def sample(self, record: Record, part: int, rng: random.Random) -> Sample:
        texts = self._drawn([clean_caption(text, self.max_words) for text in record.captions], part, rng)
        return Sample([self.transform(open_image(record.images[0]), rng)], texts, image_id=record.image_id)

    def _drawn(self, texts: list[str], part: int, rng: random.Random) -> list[str]:
        if self.captions is None:
            texts = texts[part : part + 1]
        texts = [text for text in texts if text]
        if not texts:
            raise InputError("the caption is empty once cleaned")
        if self.captions is None:
            return texts
        rng.shuffle(texts)
        return [texts[i % len(texts)] for i in range(self.captions)]


@dataclass(frozen=True, kw_only=True)
class PretrainingTask(_CaptionTask):
    """Pictures and captions for ITC, ITM and LM.

    Published (``captions=None``): every caption is a sample with its picture. With ``captions=n`` every picture is one
    sample with n of its captions, drawn anew each time and repeated if it has fewer: the first for ITC and ITM, all n
    for LM, so that the picture is encoded once. Texts are padded to ``max_tokens``, so that ranks can exchange them.
    """

    max_tokens: int = 30

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``pixels`` (B, S, S, 3), ``ids`` and ``mask`` (B, T); ``lm_ids`` and ``lm_mask`` (B * n, T) if n > 1."""
        limit = self.max_tokens
        first = tokens(self.tokenizer, [sample.texts[0] for sample in samples], "cls", limit, limit)
        made = {"pixels": stack_images(samples), **first}
        if self.captions is not None and self.captions > 1:
            texts = [text for sample in samples for text in sample.texts]
            made |= tokens(self.tokenizer, texts, "dec", limit, limit, "lm_")
        return made


@dataclass(frozen=True, kw_only=True)
class CaptioningTask(_CaptionTask):
    """Pictures and captions for LM, after a prompt.

    ``captions`` as in pretraining: None makes every caption a sample, n gives n of them with every picture.
    """

    prompt: str = CAPTION_PROMPT
    max_tokens: int = 40

    @property
    def prompt_length(self) -> int:
        """How many tokens are given and not learned, [DEC] among them."""
        return len(self.tokenizer.encode_prompt(self.prompt))

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``pixels`` (I, S, S, 3); ``ids`` and ``mask`` (C, T), C / I captions of an image side by side."""
        texts = [self.prompt + text for sample in samples for text in sample.texts]
        return {"pixels": stack_images(samples), **tokens(self.tokenizer, texts, "dec", self.max_tokens)}


@dataclass(frozen=True, kw_only=True)
class RetrievalTask(_CaptionTask):
    """Pictures and captions for ITC and ITM, with the images' ids. ``captions`` is None (every caption) or 1."""

    max_tokens: int = 35

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions not in (None, 1):
            raise InputError(
                f"retrieval takes one caption with each picture: captions is None or 1, not {self.captions}"
            )

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``pixels`` (B, S, S, 3), ``ids`` and ``mask`` (B, T), ``image_ids`` (B,)."""
        texts = [sample.texts[0] for sample in samples]
        limit = self.max_tokens
        ids = numbers([sample.image_id for sample in samples])
        return {
            "pixels": stack_images(samples), **tokens(self.tokenizer, texts, "cls", limit, limit), "image_ids": ids,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AnsweringTask(Task):
    """Questions with weighted answers.

    Published (``questions=None``): every question is a sample with its picture. With ``questions=n`` every picture is
    one sample with up to n of its questions, drawn anew each time. Answers are taken as they are. ``vg_weight`` is the
    weight of an answer from Visual Genome.
    """

    transform: Transform = field(default_factory=Plain)
    questions: int | None = None
    vg_weight: float = 0.2
    max_words: int = 50
    max_tokens: int = 35
    max_answer_tokens: int | None = None
    wants = "one picture and a question with an answer"

    def __post_init__(self) -> None:
        if self.questions is not None and self.questions < 1:
            raise InputError(f"questions is a number of questions for each picture, or None, not {self.questions}")

    def parts(self, counts: Mapping[str, Any]) -> Any:
        each = counts["answered"] if self.questions is None else (counts["answered"] > 0) * 1
        return each * (counts["images"] == 1)

    def sample(self, record: Record, part: int, rng: random.Random) -> Sample:
        asked = [question for question in record.questions if question.answers]
        asked = _chosen(asked, part, self.questions, rng)
        texts = [clean_question(question.text, self.max_words) for question in asked]
        if not all(text.strip() for text in texts):
            raise InputError("a question is empty once cleaned")
        answers = [question.weighted_answers(self.vg_weight) for question in asked]
        picture = self.transform(open_image(record.images[0]), rng)
        return Sample([picture], texts, answers, image_id=record.image_id)

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``pixels`` (I, S, S, 3), ``ids`` and ``mask`` (Q, T), ``answer_ids`` and ``answer_mask`` (A, T').

        ``owner`` (A,) is each answer's question and ``weights`` (A,) its share; ``image`` (Q,) is each question's
        picture, left out where every picture has one.
        """
        questions = [text for sample in samples for text in sample.texts]
        answers = [weighted for sample in samples for weighted in sample.answers]
        texts = [text for weighted in answers for text in weighted]
        made = {
            "pixels": stack_images(samples),
            **tokens(self.tokenizer, questions, "enc", self.max_tokens),
            **tokens(self.tokenizer, texts, "dec", self.max_answer_tokens, prefix="answer_"),
            "owner": numbers([owner for owner, weighted in enumerate(answers) for _ in weighted]),
            "weights": numbers([weight for weighted in answers for weight in weighted.values()]),
        }
        return made if self.questions is None else {**made, "image": _owners(samples)}


@dataclass(frozen=True, kw_only=True)
class ComparingTask(Task):
    """Statements about two pictures. ``swap`` is the pair augmentation of training; leave it off to evaluate."""

    transform: Transform = field(default_factory=Plain)
    swap: bool = False
    max_words: int = 40
    max_tokens: int | None = None
    wants = "two pictures, a statement and a label"

    def parts(self, counts: Mapping[str, Any]) -> Any:
        return (counts["images"] == 2) * (counts["captions"] == 1) * counts["labeled"]

    def sample(self, record: Record, part: int, rng: random.Random) -> Sample:
        text = clean_caption(record.captions[0], self.max_words)
        if not text:
            raise InputError("the statement is empty once cleaned")
        pair = record.images[0], record.images[1]
        if self.swap:
            pair, text = swap_pair(pair, text, rng)
        pixels = [self.transform(open_image(picture), rng) for picture in pair]
        return Sample(pixels, [text], label=record.label or 0, image_id=record.image_id)

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``first`` and ``second`` (B, S, S, 3), ``ids`` and ``mask`` (B, T), ``targets`` (B,)."""
        return {
            "first": stack_images(samples),
            "second": stack_images(samples, 1),
            **tokens(self.tokenizer, [sample.texts[0] for sample in samples], "enc", self.max_tokens),
            "targets": numbers([sample.label for sample in samples]),
        }


@dataclass(frozen=True, kw_only=True)
class DialogTask(Task):
    """Rounds of dialogs about captioned pictures: all before, the question, and its answer or a wrong one (VisDial).

    A record's questions are the rounds, in their order, and each of them is a sample. The wrong answer is drawn from
    those that were offered, or, without ``draw``, is the first of them. ``max_tokens`` cuts a dialog's beginning.
    """

    transform: Transform = field(default_factory=Plain)
    draw: bool = True
    max_tokens: int = 256
    wants = "one picture, a caption and questions with a right answer and wrong ones"

    def parts(self, counts: Mapping[str, Any]) -> Any:
        return counts["answered"] * (counts["images"] == 1) * (counts["captions"] > 0)

    def sample(self, record: Record, part: int, rng: random.Random) -> Sample:
        asked = [question for question in record.questions if question.answers]
        question = asked[part]
        if not question.wrong:
            raise InputError(f"the question {question.text!r} has no wrong answers to tell its answer from")
        wrong = rng.choice(question.wrong) if self.draw else question.wrong[0]
        rows = dialog_ids(
            self.tokenizer.spell, [(one.text, one.answers[0]) for one in asked[:part]], question.text,
            [question.answers[0], wrong], first=self.tokenizer.enc_id, last=self.tokenizer.sep_id,
            most=self.max_tokens,
        )  # fmt: skip
        picture = self.transform(open_image(record.images[0]), rng)
        return Sample([picture], [record.captions[0]], image_id=record.image_id, rows=rows)

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``pixels`` (I, S, S, 3), ``caption_ids`` and ``caption_mask`` (I, T'), ``ids`` and ``mask`` (2 I, T).

        Of each picture first the dialog with the right answer, then that with the wrong one: ``targets`` (2 I,).
        """
        captions = [sample.texts[0] for sample in samples]
        return {
            "pixels": stack_images(samples),
            **tokens(self.tokenizer, captions, "cls", self.max_tokens, prefix="caption_"),
            **padded([row for sample in samples for row in sample.rows], self.tokenizer.pad_id),
            "targets": numbers([1, 0] * len(samples)),
        }


@dataclass(frozen=True, kw_only=True)
class GroundingTask(Task):
    """Expressions and their boxes. ``refs`` as ``questions`` of VQA: None makes every expression a sample.

    With probability ``mirror`` a picture is mirrored, with its boxes and with "left" and "right" in its expressions.
    """

    transform: BoxTransform = field(default_factory=PlainBoxes)
    refs: int | None = None
    mirror: float = 0.0
    max_tokens: int = 128
    wants = "one picture and an expression with a box"

    def __post_init__(self) -> None:
        if self.refs is not None and self.refs < 1:
            raise InputError(f"refs is a number of expressions for each picture, or None, not {self.refs}")

    def parts(self, counts: Mapping[str, Any]) -> Any:
        each = counts["expressions"] if self.refs is None else (counts["expressions"] > 0) * 1
        return each * (counts["images"] == 1)

    def sample(self, record: Record, part: int, rng: random.Random) -> Sample:
        named = _chosen(record.expressions, part, self.refs, rng)
        texts = [clean_expression(ref.text) for ref in named]
        if not all(texts):
            raise InputError("an expression is empty once cleaned")
        image = open_image(record.images[0])
        for left, top, right, bottom in (ref.box for ref in named):
            if min(right, image.width) - max(left, 0) <= 0 or min(bottom, image.height) - max(top, 0) <= 0:
                box = [left, top, right - left, bottom - top]
                raise InputError(f"bbox {box} lies outside its picture of {image.width} x {image.height}")
        boxes = [ref.box for ref in named]
        if self.mirror and rng.random() < self.mirror:
            image = ImageOps.mirror(image)
            boxes = [(image.width - right, top, image.width - left, bottom) for left, top, right, bottom in boxes]
            texts = [exchange_sides(text) for text in texts]
        pixels, boxes = self.transform(image, boxes, rng)
        return Sample([pixels], texts, boxes=boxes, image_id=record.image_id)

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``pixels`` (I, S, S, 3); ``ids`` and ``mask`` (B, T); ``boxes`` (B, 4) in pixels of pictures of ``sizes``.

        ``image`` (B,) is each expression's picture, left out where every picture has one.
        """
        texts = [text for sample in samples for text in sample.texts]
        boxes = numbers([box for sample in samples for box in sample.boxes])
        pixels = stack_images(samples)
        made = {
            "pixels": pixels,
            **tokens(self.tokenizer, texts, "cls", self.max_tokens),
            "boxes": boxes,
            "sizes": boxes.new_tensor([[pixels.shape[2], pixels.shape[1]]]).expand(len(boxes), 2).clone(),
        }
        return made if self.refs is None else {**made, "image": _owners(samples)}


def _chosen(of: Sequence[Made], part: int, most: int | None, rng: random.Random) -> list[Made]:
    """Number ``part`` of several, or up to ``most`` of them drawn at random."""
    return [of[part]] if most is None else rng.sample(of, min(most, len(of)))


def _owners(samples: Sequence[Sample]) -> Tensor:
    return numbers([owner for owner, sample in enumerate(samples) for _ in sample.texts])
