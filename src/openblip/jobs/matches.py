"""Match scores and embeddings of a job's items."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from openblip.errors import InputError, OpenBlipError
from openblip.jobs.items import Item

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.results import Match

Judged: TypeAlias = "list[tuple[str, Match]] | OpenBlipError"


def matches(blip: Blip, items: Iterator[Item], texts: Sequence[str], *, frame: int = 0) -> Iterator[Judged]:
    """For each item, each text with how well it fits."""
    for found in blip.match((item.source(frame) for item in items), list(texts)):
        yield found if isinstance(found, OpenBlipError) else list(zip(texts, found, strict=True))


def matches_beside(blip: Blip, items: Iterator[Item], suffix: str, *, frame: int = 0) -> Iterator[Judged]:
    """For each item, the lines of the text file beside it with how well they fit."""
    while batch := list(islice(items, blip.batch_size)):
        told = [_beside(item, suffix) for item in batch]
        good = [item for item, texts in zip(batch, told, strict=True) if isinstance(texts, list)]
        seen = dict(zip(good, blip.encode_images([i.source(frame) for i in good], task="match"), strict=True))
        pairs = [
            (seen[item], text)
            for item, texts in zip(batch, told, strict=True)
            if isinstance(texts, list) and not isinstance(seen[item], OpenBlipError)
            for text in texts
        ]
        judged = iter(blip.match([p for p, _ in pairs], [t for _, t in pairs], paired=True) if pairs else [])
        for item, texts in zip(batch, told, strict=True):
            if isinstance(texts, OpenBlipError):
                yield texts
            elif isinstance(seen[item], OpenBlipError):
                yield seen[item]
            else:
                yield [(text, next(judged)) for text in texts]


def _beside(item: Item, suffix: str) -> list[str] | OpenBlipError:
    if item.file is None:
        return InputError("it has no file of its own with a text beside it")
    path = os.path.splitext(item.file)[0] + suffix  # noqa: PTH122
    try:
        with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123
            lines = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        return InputError(f"there is no {path} to judge")
    except (OSError, UnicodeDecodeError) as error:
        return InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}")
    return lines or InputError(f"{path} is empty")


def embeddings(blip: Blip, items: Iterator[Item], *, frame: int = 0) -> Iterator[Any]:
    """For each item its embedding (E,), float32 and L2-normalised, or an error."""
    found: Iterator[Any] = blip.embed_images((item.source(frame) for item in items), on_error="return")
    return found
