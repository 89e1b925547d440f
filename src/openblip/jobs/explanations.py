"""Where the model looked, for each of a job's items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.jobs.items import Item
from openblip.jobs.records import Row

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.results import Explanation


def explanations(
    blip: Blip, items: Iterator[Item], texts: Sequence[str] | None, *, frame: int = 0, **options: Any
) -> Iterator[list[Explanation] | OpenBlipError]:
    """For each item one explanation per text, or that of the model's own caption.

    ``options`` are those of :meth:`Blip.explain`; those that cannot work end the job before the first picture.
    """
    list(blip.explain(iter(()), on_error="return", **options))

    def explain(item: Item) -> list[Explanation] | OpenBlipError:
        try:
            found = blip.explain(item.source(frame), None if texts is None else list(texts), **options)
        except (ImageError, InputError) as error:
            return error
        return [found] if texts is None else list(found)

    return map(explain, items)


def record(one: Explanation) -> Row:
    """The record of an explanation: of an answer it holds question and answer as those of answers do."""
    told = one.to_dict()
    if "answer" in told:
        told = {"question": told.pop("text"), "text": told.pop("answer"), **told}
    return told
