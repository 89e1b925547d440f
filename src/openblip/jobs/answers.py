"""Answers about a job's items: a picture is opened and encoded once, however many questions there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from openblip.errors import OpenBlipError
from openblip.jobs.items import Item

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.results import Answer


def answers_of(
    blip: Blip, items: Iterator[Item], questions: Sequence[str], *, frame: int = 0, **options: Any
) -> Iterator[list[list[Answer]] | OpenBlipError]:
    """For each item, for each question, its answers, the likeliest first. ``options`` are those of :meth:`Blip.ask`."""
    several = options.get("n", 1) > 1
    if len(questions) == 1:  # the way that streams
        for found in blip.ask((item.source(frame) for item in items), questions[0], **options):
            yield found if isinstance(found, OpenBlipError) else [found if several else [found]]
        return
    while batch := list(islice(items, blip.batch_size)):
        seen = blip.encode_images([item.source(frame) for item in batch], task="answer")
        for image in seen:
            if isinstance(image, OpenBlipError):
                yield image
            else:
                found = blip.ask(image, list(questions), **options)
                yield found if several else [[one] for one in found]
