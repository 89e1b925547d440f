"""Answers about a job's items: a picture is opened and encoded once, however many questions there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from openblip.errors import OpenBlipError
from openblip.jobs.items import Item

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.results import Answer, Box

Call: TypeAlias = Callable[[Any, "str | list[str]"], Any]


def answers_of(
    blip: Blip, items: Iterator[Item], questions: Sequence[str], *, frame: int = 0, **options: Any
) -> Iterator[list[Answer] | OpenBlipError]:
    """For each item, for each question, its answer with its alternatives. ``options`` are those of :meth:`Blip.ask`."""

    def call(images: Any, texts: str | list[str]) -> Any:
        return blip.ask(images, texts, on_error="return", **options)

    return _each(blip, items, questions, "vqa", call, frame)


def boxes_of(
    blip: Blip, items: Iterator[Item], expressions: Sequence[str], *, frame: int = 0
) -> Iterator[list[Box] | OpenBlipError]:
    """For each item, for each expression, where that is."""

    def call(images: Any, texts: str | list[str]) -> Any:
        return blip.ground(images, texts, on_error="return")

    return _each(blip, items, expressions, "grounding", call, frame)


def _each(
    blip: Blip, items: Iterator[Item], texts: Sequence[str], task: Literal["vqa", "grounding"], call: Call, frame: int
) -> Iterator[Any]:
    """For each item the results of ``call`` about all texts, or an error."""
    if len(texts) == 1:  # the way that streams
        for found in call((item.source(frame) for item in items), texts[0]):
            yield found if isinstance(found, OpenBlipError) else [found]
        return
    while batch := list(islice(items, blip.batch_size)):
        for image in blip.encode_images([item.source(frame) for item in batch], task=task, on_error="return"):
            yield image if isinstance(image, OpenBlipError) else call(image, list(texts))
