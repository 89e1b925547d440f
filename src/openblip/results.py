"""What comes back: plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy import float32
from numpy.typing import NDArray


@dataclass(frozen=True)
class Caption:
    """A description. ``logprob`` is the summed natural-log probability of its new tokens, [SEP] included.

    ``finished`` tells whether the text came to its end, or was cut off by ``max_new_tokens``; ``unmet`` is set where a
    required word could not be had.
    """

    text: str
    logprob: float
    finished: bool = True
    unmet: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer and its probability: of the whole sequence, or among the closed list it was chosen from."""

    text: str
    probability: float


@dataclass(frozen=True)
class Match:
    """How well a text fits a picture: ``probability`` by ITM, ``similarity`` the ITC cosine (-1 to 1)."""

    probability: float
    similarity: float


@dataclass(frozen=True)
class Label:
    """A label and its probability among the labels it was chosen from."""

    text: str
    probability: float


@dataclass(frozen=True)
class Comparison:
    """Whether a statement about two pictures is true, and the probability that it is."""

    label: bool
    probability: float


@dataclass(frozen=True)
class Box:
    """Where something is: edges in pixels of the upright picture, from its left and its top.

    ``probability`` is that of the four coordinates together, each among all places it could have.
    """

    left: float
    top: float
    right: float
    bottom: float
    probability: float

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the model looked for each of the ``words`` of a text.

    ``maps`` (words, G, G) are heat maps over the model's grid of patches, from 0 up, on one scale for all words;
    ``overall`` (G, G) is their mean over word pieces, and ``start`` that of [ENC], which stands before a text to match
    or a question. What is explained has the ``probability``: that picture and text match, of the caption, or of the
    ``answer`` to the question.
    """

    text: str
    words: tuple[str, ...]
    maps: NDArray[float32] = field(repr=False)
    overall: NDArray[float32] = field(repr=False)
    probability: float
    answer: str | None = None
    start: NDArray[float32] | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        """All of it as lists, numbers and strings, for JSON."""
        plain = {"text": self.text, "probability": self.probability, "words": list(self.words)}
        answer = {} if self.answer is None else {"answer": self.answer}
        start = {} if self.start is None else {"start": self.start.tolist()}
        return {**plain, **answer, "maps": self.maps.tolist(), "overall": self.overall.tolist(), **start}
