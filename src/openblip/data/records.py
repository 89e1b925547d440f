"""Records: images that are opened on demand, and everything annotated about them (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openblip.data.images import ImageRef
from openblip.data.samples import Box


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        text: The question.
        answers: One entry per person; equal answers repeat.
        source: Data set named in the row ("vqa" or "vg" in the published files).
        id: The question's id in its file.
        auto: Whether a rule made the question: fit for training, not for reporting.
        wrong: Answers that were offered and are not right.
    """

    text: str
    answers: tuple[str, ...] = ()
    source: str = ""
    id: int | str | None = None
    auto: bool = False
    wrong: tuple[str, ...] = ()

    def weighted_answers(self, vg_weight: float = 0.2) -> dict[str, float]:
        """Return each distinct answer, in order, with its share of all answers.

        Args:
            vg_weight: Weight of an answer from Visual Genome (`source` "vg"): 0.2 in the paper's code, 1.0 in LAVIS.

        Returns:
            Weights by answer.
        """
        if self.source == "vg":
            return dict.fromkeys(self.answers, vg_weight)
        return {answer: count / len(self.answers) for answer, count in Counter(self.answers).items()}


@dataclass(frozen=True)
class Expression:
    """A text that names one thing in an image, and the thing's box.

    Attributes:
        text: The expression.
        box: Left, top, right and bottom in pixels of the image.
        auto: Whether a rule made the expression.
    """

    text: str
    box: Box
    auto: bool = False


@dataclass(frozen=True)
class Record:
    """One image, or a pair of images, with its annotations.

    Attributes:
        images: References to one image, or to the left and the right image of a pair.
        address: Where the record comes from (file and line, tar and member), to report and find it.
        captions: Captions of an image, or the statement about a pair.
        questions: Questions about the image; the rounds of a dialog, in order.
        expressions: Expressions with boxes.
        label: Whether the statement about a pair is true (1) or false (0).
        image_id: Equal for records of one image, and only for those: counted from 0 in an indexed source, a 63-bit
            hash in a stream.
        extra: Columns that the caller asked to keep.
        filtered: Whether a filter (CapFilt) kept no text, so that the record is left out without a notice.
    """

    images: tuple[ImageRef, ...]
    address: str
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    expressions: tuple[Expression, ...] = ()
    label: int | None = None
    image_id: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    filtered: bool = False

    def counts(self) -> dict[str, int]:
        """Count images and annotations.

        Returns:
            Numbers by kind: `images`, `captions`, `questions`, `answered` (questions with an answer), `expressions`,
            `labeled` and `filtered` (0 or 1).
        """
        return {
            "images": len(self.images),
            "captions": len(self.captions),
            "questions": len(self.questions),
            "answered": sum(1 for question in self.questions if question.answers),
            "expressions": len(self.expressions),
            "labeled": int(self.label is not None),
            "filtered": int(self.filtered),
        }
