"""Records: images that are opened on demand, and everything annotated about them (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.data.images import ImageRef


@dataclass(frozen=True)
class Question:
    """A question and what people answered, one entry for each person; equal answers repeat.

    ``source`` is the data set named in the row ("vqa" or "vg" in the published files). ``auto`` marks a question that a
    rule made: fit for training, not for reporting. ``wrong`` holds answers that were offered and are not right.
    """

    text: str
    answers: tuple[str, ...] = ()
    source: str = ""
    id: int | str | None = None
    auto: bool = False
    wrong: tuple[str, ...] = ()

    def weighted_answers(self, vg_weight: float = 0.2) -> dict[str, float]:
        """Each distinct answer, in the order given, with its share of all.

        The paper's code gives the single answers of Visual Genome (``source`` "vg") 0.2, LAVIS gives them 1.0.
        """
        if self.source == "vg":
            return dict.fromkeys(self.answers, vg_weight)
        return {answer: times / len(self.answers) for answer, times in Counter(self.answers).items()}


@dataclass(frozen=True)
class Expression:
    """Words that name one thing in the picture, and its box (left, top, right, bottom) in pixels of that picture."""

    text: str
    box: tuple[float, float, float, float]
    auto: bool = False


@dataclass(frozen=True)
class Record:
    """One picture, or a pair of them, with its texts.

    ``captions`` holds the statement of a pair too, and ``label`` whether it is true (NLVR2). ``image_id`` is equal for
    records of one picture and only for those: dense from 0 in a source that knows its length, else a 63-bit hash.
    ``extra`` holds the columns that the caller asked to keep.
    """

    images: tuple[ImageRef, ...]
    address: str
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    expressions: tuple[Expression, ...] = ()
    label: int | None = None
    image_id: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many of each there are; ``answered`` counts the questions that have an answer."""
        return {
            "images": len(self.images),
            "captions": len(self.captions),
            "questions": len(self.questions),
            "answered": sum(1 for question in self.questions if question.answers),
            "expressions": len(self.expressions),
            "labeled": int(self.label is not None),
        }
