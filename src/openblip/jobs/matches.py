"""Match scores and embeddings of a job's items, and statements about pairs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, tee
from typing import TYPE_CHECKING, Any, TypeAlias

from openblip.data.records import Record
from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.jobs.items import Item

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.results import Comparison, Match

Judged: TypeAlias = "list[tuple[str, Match]] | OpenBlipError"
Compared: TypeAlias = "list[tuple[str, Comparison]] | OpenBlipError"


def matches(blip: Blip, items: Iterator[Item], texts: Sequence[str], *, frame: int = 0) -> Iterator[Judged]:
    """For each item, each text with how well it fits."""
    for found in blip.match((item.source(frame) for item in items), list(texts), on_error="return"):
        yield found if isinstance(found, OpenBlipError) else list(zip(texts, found, strict=True))


def matches_beside(blip: Blip, items: Iterator[Item], suffix: str, *, frame: int = 0) -> Iterator[Judged]:
    """For each item, the lines of the text file beside it with how well they fit."""
    while batch := list(islice(items, blip.batch_size)):
        told = [_beside(item, suffix) for item in batch]
        good = [item for item, texts in zip(batch, told, strict=True) if isinstance(texts, list)]
        encoded = blip.encode_images([i.source(frame) for i in good], task="retrieval", on_error="return")
        seen: dict[Item, Any] = dict(zip(good, encoded, strict=True))
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


def comparisons(
    blip: Blip, items: Iterator[Item], statements: Sequence[str] | None, *, frame: int = 0
) -> Iterator[Compared]:
    """For each pair, each statement with whether it is true; without ``statements``, the one that its list holds."""
    if statements is not None and len(statements) > 1:  # a pair is encoded once
        yield from (_compared(blip, item, statements, frame) for item in items)
        return
    lefts, rights, asked, told = tee(items, 4)
    lone = statements[0] if statements is not None else None
    said: Any = lone if lone is not None else (item.asked["text"] for item in asked)
    found = blip.compare(
        (item.pair(frame)[0] for item in lefts), (item.pair(frame)[1] for item in rights), said, on_error="return"
    )
    for item, one in zip(told, found, strict=True):
        text = lone if lone is not None else item.asked["text"]
        yield one if isinstance(one, OpenBlipError) else [(text, one)]


def _compared(blip: Blip, item: Item, statements: Sequence[str], frame: int) -> Compared:
    try:
        return list(zip(statements, blip.compare(*item.pair(frame), list(statements)), strict=True))
    except (ImageError, InputError) as error:
        return error


def statements_of(record: Record) -> Iterable[Mapping[str, str]]:
    """What a list says about a pair: each statement is an item of its own."""
    return ({"text": text} for text in record.captions)


def embeddings(blip: Blip, items: Iterator[Item], *, frame: int = 0) -> Iterator[Any]:
    """For each item its embedding (E,), float32 and L2-normalised, or an error."""
    found: Iterator[Any] = blip.embed_images((item.source(frame) for item in items), on_error="return")
    return found
