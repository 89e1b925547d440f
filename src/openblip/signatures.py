"""Types of the keyword arguments of :class:`~openblip.Blip`, which its overloads share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, TypedDict

from openblip.pipelines.explain import ExplainedTask
from openblip.pipelines.shapes import Progress

Raise: TypeAlias = Literal["raise"]
Return: TypeAlias = Literal["return"]


class CaptionOptions(TypedDict, total=False):
    """The keyword arguments of :meth:`Blip.caption`, for type checkers."""

    prompt: str | Iterable[str | None] | None
    num_beams: int | None
    n: int
    min_new_tokens: int
    max_new_tokens: int
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    do_sample: bool
    top_p: float | None
    top_k: int | None
    temperature: float | None
    seed: int | None
    forbid: Sequence[str]
    require: Sequence[str | Sequence[str]]
    trim: bool
    progress: Progress


class AskOptions(TypedDict, total=False):
    """The keyword arguments of :meth:`Blip.ask`, for type checkers."""

    answers: Sequence[str] | None
    n: int
    shortlist: int | None
    smoothing: float | None
    num_beams: int | None
    min_new_tokens: int | None
    max_new_tokens: int | None
    progress: Progress


class ClassifyOptions(TypedDict, total=False):
    """The keyword arguments of :meth:`Blip.classify`, for type checkers."""

    template: str
    by: Literal["itc", "itm"]
    n: int
    progress: Progress


class ExplainOptions(TypedDict, total=False):
    """The keyword arguments of :meth:`Blip.explain`, for type checkers."""

    task: ExplainedTask
    answer: str | None
    layer: int | None
    progress: Progress


class SharedOptions(TypedDict, total=False):
    """The keyword argument that all methods take."""

    progress: Progress
