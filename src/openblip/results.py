"""Results of the public methods: frozen dataclasses without torch.

Every result has `to_dict()`, which returns strings, numbers and lists for JSON. Results of `n` > 1 carry the other
candidates, ranked, in `alternatives`.
"""

from __future__ import annotations

import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, TypeAlias

from numpy import float32
from numpy.typing import NDArray

from openblip.errors import InputError
from openblip.extras import install_hint
from openblip.io.jsonlines import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

ImageLoader: TypeAlias = "Callable[[], Image.Image]"

_PNG_SIZE = 1024  # pixels: drawings for notebooks are at most this wide and high


class _Result(ABC):
    """A result that prints the fields that differ from their defaults."""

    @abstractmethod
    def to_dict(self) -> dict[str, Json]:
        """Return the result for JSON.

        Returns:
            Fields as strings, numbers and lists.
        """

    def __repr__(self) -> str:
        values = []
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, item.name)
            if item.repr and (item.default is MISSING or value != item.default):
                values.append(f"{item.name}={value!r}")
        return f"{type(self).__name__}({', '.join(values)})"


class _Drawable(_Result):
    """A result that can be drawn into its image."""

    image: ImageLoader | None

    @abstractmethod
    def _draw(self, image: Image.Image) -> Image.Image:
        """Return the drawing of the result in an image."""

    def draw(self) -> Image.Image:
        """Draw the result into its image.

        Returns:
            A new RGB image.

        Raises:
            InputError: The image is no longer available.
        """
        if self.image is None:
            raise InputError(f"the {type(self).__name__} has no image to draw into: it was not made by `Blip`")
        return self._draw(self.image())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw the result into its image, and write the drawing to a file.

        Args:
            path: The file to write. Its suffix is the format: `.png`, `.jpg`, `.webp`.

        Raises:
            InputError: The image is no longer available, or the suffix is unknown.
            OSError: The file cannot be written.
        """
        drawing = self.draw()
        try:
            drawing.save(path)
        except ValueError as error:
            raise InputError(f"path must end in .png, .jpg or .webp, got {os.fspath(path)}") from error

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result with Matplotlib.

        Args:
            ax: Axes to draw into; by default new ones.

        Returns:
            The axes. Show them with `matplotlib.pyplot.show()`.

        Raises:
            InputError: The image is no longer available, or Matplotlib is not installed.
        """
        drawing = self.draw()
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise InputError(f"plot needs matplotlib: {install_hint('plot')}; or use save") from error
            _, ax = pyplot.subplots(figsize=(drawing.width / 100, drawing.height / 100), layout="tight")
        ax.imshow(drawing)
        ax.set_axis_off()
        return ax

    def _repr_png_(self) -> bytes | None:
        """Return the drawing as PNG, for notebooks; `None` if the image is no longer available."""
        if self.image is None:
            return None
        drawing = self.draw()
        drawing.thumbnail((_PNG_SIZE, _PNG_SIZE))
        buffer = io.BytesIO()
        drawing.save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, repr=False)
class Caption(_Result):
    """A description of an image.

    Attributes:
        text: The caption. It starts with the prompt that the caller passed, but not with the checkpoint's own.
        logprob: Summed natural-log probability of the generated tokens, [SEP] included.
        score: Mean natural-log probability per generated token, which compares captions of different lengths.
        finished: Whether the caption ended with [SEP]; `False` if `max_new_tokens` cut it off.
        unmet: Whether a word from `require` is missing.
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


@dataclass(frozen=True, repr=False)
class Answer(_Result):
    """An answer to a question about an image.

    Attributes:
        text: The answer.
        probability: Probability of the whole sequence, or, with a closed list of answers, among that list.
        score: Mean natural-log probability per token, [SEP] included; `None` for an answer of a closed list that
            `shortlist` left out.
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


@dataclass(frozen=True, repr=False)
class Match(_Result):
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


@dataclass(frozen=True, repr=False)
class Label(_Result):
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


@dataclass(frozen=True, repr=False)
class Classification(_Result):
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


@dataclass(frozen=True, repr=False)
class Comparison(_Result):
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


@dataclass(frozen=True, repr=False)
class Box(_Drawable):
    """The region of an image that an expression names.

    In a notebook a box draws itself into its image. `save` and `plot` do so elsewhere.

    Attributes:
        left: Left edge in pixels of the upright image, from its left.
        top: Top edge in pixels, from the top of the image.
        right: Right edge in pixels, from the left of the image.
        bottom: Bottom edge in pixels, from the top of the image.
        probability: Product of the probabilities of the four coordinates.
        image: Loads the image, or a small copy, to draw the box into. Not part of `repr`, equality or `to_dict`.
    """

    left: float
    top: float
    right: float
    bottom: float
    probability: float
    image: ImageLoader | None = field(default=None, repr=False, compare=False)

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

    def _draw(self, image: Image.Image) -> Image.Image:
        from openblip import drawing

        return drawing.draw_boxes(image, [self.edges], [f"{self.probability:.2g}"])


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(_Drawable):
    """Heat maps that show which parts of an image raise the score of each word (Grad-CAM).

    In a notebook an explanation draws itself: the image, all words, and one tile for each word.

    Shapes: W words, G patches along a side of the model's image.

    Attributes:
        text: The explained text: a text to match, a caption or a question.
        words: The W words of the text.
        maps: Heat maps (W, G, G) over the patches, 0 and above, on one scale for all words.
        overall: Mean heat map (G, G) over the word pieces of the text.
        probability: The explained probability: of the match, the caption or the answer.
        answer: The answer whose probability is explained, if the text is a question.
        start: Heat map (G, G) of [ENC], the first token of a text to match or a question.
        image: Loads the image, or a small copy, to draw into. Not part of `repr`, equality or `to_dict`.
    """

    text: str
    words: tuple[str, ...]
    maps: NDArray[float32] = field(repr=False)
    overall: NDArray[float32] = field(repr=False)
    probability: float
    answer: str | None = None
    start: NDArray[float32] | None = field(default=None, repr=False)
    image: ImageLoader | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Json]:
        """Return text, probability, words and heat maps as strings, numbers and lists."""
        values: dict[str, Json] = {"text": self.text, "probability": self.probability, "words": list(self.words)}
        if self.answer is not None:
            values["answer"] = self.answer
        values["maps"] = self.maps.tolist()
        values["overall"] = self.overall.tolist()
        if self.start is not None:
            values["start"] = self.start.tolist()
        return values

    def _draw(self, image: Image.Image) -> Image.Image:
        from openblip import drawing

        return drawing.draw_explanation(image, self)


def _with_alternatives(
    values: dict[str, Json], alternatives: tuple[Caption, ...] | tuple[Answer, ...]
) -> dict[str, Json]:
    if alternatives:
        values["alternatives"] = [alternative.to_dict() for alternative in alternatives]
    return values
