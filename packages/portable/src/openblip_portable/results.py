"""Results: frozen dataclasses with the fields of those of `openblip`. `to_dict()` returns them for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""A value that JSON can express."""


@dataclass(frozen=True)
class Caption:
    """A description of an image.

    Attributes:
        text: The caption. It starts with the prompt that the caller passed, but not with the model's own.
        logprob: Summed natural-log probability of the generated tokens, [SEP] included.
        score: Mean natural-log probability per generated token.
        finished: Whether the caption ended with [SEP]; `False` if `max_new_tokens` cut it off.
        unmet: Whether the caption lacks a word of `require`.
        confidence: Probability that the caption names the subject of the image, with the default settings; `None` if
            the model has no calibration.
        alternatives: The other `n - 1` captions, the likeliest first.
    """

    text: str
    logprob: float
    score: float
    finished: bool = True
    unmet: bool = False
    confidence: float | None = None
    alternatives: tuple[Caption, ...] = ()

    def to_dict(self) -> dict[str, Json]:
        """Return the caption as strings and numbers; alternatives only if there are any."""
        values: dict[str, Json] = {
            "text": self.text,
            "logprob": self.logprob,
            "score": self.score,
            "finished": self.finished,
            "unmet": self.unmet,
            "confidence": self.confidence,
        }
        return _with_alternatives(values, self.alternatives)


@dataclass(frozen=True)
class Answer:
    """An answer to a question about an image.

    Attributes:
        text: The answer.
        probability: Probability of the whole sequence, or, with a closed list of answers, among that list.
        score: Mean natural-log probability per token, [SEP] included.
        alternatives: The other `n - 1` answers, the likeliest first.
    """

    text: str
    probability: float
    score: float | None = None
    alternatives: tuple[Answer, ...] = ()

    def to_dict(self) -> dict[str, Json]:
        """Return the answer as strings and numbers; alternatives only if there are any."""
        values: dict[str, Json] = {"text": self.text, "probability": self.probability, "score": self.score}
        return _with_alternatives(values, self.alternatives)


@dataclass(frozen=True)
class Match:
    """How well a text fits an image.

    Attributes:
        probability: Probability of a match by the image-text matching head (ITM).
        similarity: Cosine of the image and text embeddings (ITC), -1 to 1.
    """

    probability: float
    similarity: float

    def to_dict(self) -> dict[str, Json]:
        """Return both scores."""
        return {"probability": self.probability, "similarity": self.similarity}


@dataclass(frozen=True)
class Label:
    """A label of a closed list.

    Attributes:
        text: The label, as the caller passed it.
        probability: Probability among all labels of the list.
    """

    text: str
    probability: float

    def to_dict(self) -> dict[str, Json]:
        """Return the label and its probability."""
        return {"text": self.text, "probability": self.probability}


@dataclass(frozen=True)
class Classification:
    """The most probable labels of an image.

    Attributes:
        labels: The `n` most probable labels, ranked.
    """

    labels: tuple[Label, ...]

    @property
    def text(self) -> str:
        """The most probable label."""
        return self.labels[0].text

    @property
    def probability(self) -> float:
        """Probability of the most probable label."""
        return self.labels[0].probability

    def to_dict(self) -> dict[str, Json]:
        """Return the ranked labels."""
        return {"labels": [label.to_dict() for label in self.labels]}


@dataclass(frozen=True)
class Comparison:
    """Whether a statement about two images is true.

    Attributes:
        label: Whether the model judges the statement true.
        probability: Probability that the statement is true.
    """

    label: bool
    probability: float

    def to_dict(self) -> dict[str, Json]:
        """Return the label and the probability."""
        return {"label": self.label, "probability": self.probability}


@dataclass(frozen=True)
class Box:
    """The region of an image that an expression names.

    Attributes:
        left: Left edge in pixels of the upright image, from its left.
        top: Top edge in pixels, from the top of the image.
        right: Right edge in pixels, from the left of the image.
        bottom: Bottom edge in pixels, from the top of the image.
        probability: Product of the probabilities of the four coordinates.
    """

    left: float
    top: float
    right: float
    bottom: float
    probability: float

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """The left, top, right and bottom edges."""
        return self.left, self.top, self.right, self.bottom

    @property
    def score(self) -> float:
        """Mean natural-log probability of the four coordinates."""
        return math.log(self.probability) / 4 if self.probability > 0 else -math.inf

    def to_dict(self) -> dict[str, Json]:
        """Return the edges, the probability and the score."""
        return {
            "left": self.left,
            "top": self.top,
            "right": self.right,
            "bottom": self.bottom,
            "probability": self.probability,
            "score": self.score,
        }


def _with_alternatives(
    values: dict[str, Json], alternatives: tuple[Caption, ...] | tuple[Answer, ...]
) -> dict[str, Json]:
    if alternatives:
        values["alternatives"] = [alternative.to_dict() for alternative in alternatives]
    return values
