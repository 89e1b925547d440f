"""Types of the keyword arguments of `Blip`, which its overloads share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, TypedDict

from openblip.io.limits import Stop
from openblip.pipelines.explain import ExplainedTask
from openblip.pipelines.shapes import Progress

Raise: TypeAlias = Literal["raise"]
Return: TypeAlias = Literal["return"]


class SharedOptions(TypedDict, total=False):
    """The keyword arguments that all methods take."""

    progress: Progress
    timeout: float | None
    stop: Stop | None


class DecodingOptions(TypedDict, total=False):
    """The keyword arguments of captions that do not depend on the image."""

    num_beams: int | None
    n: int
    min_new_tokens: int
    max_new_tokens: int
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int | None
    do_sample: bool
    top_p: float | None
    top_k: int | None
    temperature: float | None
    seed: int | None
    forbid: Sequence[str]
    require: Sequence[str | Sequence[str]]
    trim: bool


class CaptionOptions(DecodingOptions, SharedOptions, total=False):
    """The keyword arguments of `Blip.caption`."""

    prompt: str | Iterable[str | None] | None


class CaptionPipelineOptions(DecodingOptions, total=False):
    """The keyword arguments of `Blip.pipeline("caption")`."""

    prompt: str | None


class VqaPipelineOptions(TypedDict, total=False):
    """The keyword arguments of `Blip.pipeline("vqa")`."""

    answers: Sequence[str] | None
    n: int
    shortlist: int | None
    smoothing: float | None
    num_beams: int | None
    min_new_tokens: int | None
    max_new_tokens: int | None
    length_penalty: float | None


class AskOptions(VqaPipelineOptions, SharedOptions, total=False):
    """The keyword arguments of `Blip.ask`."""


class ClassifyOptions(SharedOptions, total=False):
    """The keyword arguments of `Blip.classify`."""

    template: str
    by: Literal["itc", "itm"]
    n: int


class ExplainOptions(SharedOptions, total=False):
    """The keyword arguments of `Blip.explain`."""

    task: ExplainedTask
    answer: str | None
    layer: int | None
