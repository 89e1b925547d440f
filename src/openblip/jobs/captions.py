"""Captions of a job's items: searched for or drawn, scored by a matcher, and put into words as the user wants them."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, tee
from typing import TYPE_CHECKING, Any, TypeAlias

from openblip.data.records import Record
from openblip.errors import InputError, OpenBlipError
from openblip.jobs.items import Asked, Item
from openblip.jobs.records import Row
from openblip.jobs.run import Result
from openblip.results import Caption

if TYPE_CHECKING:
    from openblip.blip import Blip

Scored: TypeAlias = "list[tuple[Caption, dict[str, float]]]"


@dataclass(frozen=True)
class Wording:
    """How a caption becomes the text that is written: ``template`` may name {caption}, {name} and {folder}."""

    template: str = "{caption}"
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise InputError(f"--template {self.template!r}: {error}") from error
        for _, field, form, conversion in parts:
            if field is not None and (field not in ("caption", "name", "folder") or form or conversion):
                raise InputError(f"--template may name {{caption}}, {{name}} and {{folder}}, not {{{field}}}")

    def __call__(self, item: Item, text: str) -> str:
        folder, name = os.path.split(item.file or item.inside)
        return self.template.format(
            caption=self.prefix + text + self.suffix,
            name=os.path.splitext(name)[0],  # noqa: PTH122
            folder=os.path.basename(os.path.abspath(folder) if item.file else folder),  # noqa: PTH100, PTH119
        )


def captions(
    blip: Blip,
    items: Iterator[Item],
    decoding: Mapping[str, Any],
    *,
    frame: int = 0,
    own_prompts: bool = False,
    scorer: Callable[[], Blip] | None = None,
) -> Iterator[Scored | OpenBlipError]:
    """For each item its captions with their scores, the best first: by the scorer if there is one, else by the search.

    ``decoding`` is what :meth:`Blip.caption` takes; with ``own_prompts`` items may have their own (:func:`prompts_of`).
    """
    items, pictures, prompted = tee(items, 3)
    default = decoding.get("prompt")
    prompts = (item.asked.get("prompt", default) for item in prompted) if own_prompts else default
    options = {**decoding, "prompt": prompts}
    found = blip.caption((item.source(frame) for item in pictures), on_error="return", **options)
    results = zip(items, map(_listed, found), strict=True)
    if scorer is None:
        for _, result in results:
            yield result if isinstance(result, OpenBlipError) else [(one, {}) for one in result]
        return
    matcher = scorer()
    while batch := list(islice(results, blip.batch_size)):
        yield from _scored(matcher, batch, frame)


def _scored(
    matcher: Blip, batch: list[tuple[Item, list[Caption] | OpenBlipError]], frame: int
) -> Iterator[Scored | OpenBlipError]:
    """The captions of a batch in the order that the matcher likes them; each picture is seen once."""
    good = [item for item, found in batch if isinstance(found, list)]
    seen: dict[Item, Any] = dict(
        zip(
            good,
            matcher.encode_images([i.source(frame) for i in good], task="retrieval", on_error="return"),
            strict=True,
        )
    )
    pairs = [
        (seen[item], one.text)
        for item, found in batch
        if isinstance(found, list) and not isinstance(seen[item], OpenBlipError)
        for one in found
    ]
    judged = iter(matcher.match([p for p, _ in pairs], [t for _, t in pairs], paired=True) if pairs else [])
    for item, found in batch:
        if not isinstance(found, list):
            yield found
        elif isinstance(seen[item], OpenBlipError):
            yield seen[item]
        else:
            scores = [next(judged) for _ in found]
            rows = [
                (one, {"probability": s.probability, "similarity": s.similarity})
                for one, s in zip(found, scores, strict=True)
            ]
            yield sorted(rows, key=lambda row: -row[1]["probability"])


def record(wording: Wording, item: Item, one: Caption, scores: Mapping[str, float], **more: Any) -> Row:
    """The record of a caption; what is ``None`` will not be in it."""
    text = wording(item, one.text)
    return {
        **more, "text": text, "generated": one.text if text != one.text else None, "logprob": one.logprob,
        "finished": one.finished, "unmet": one.unmet or None, **scores,
    }  # fmt: skip


def work(
    blip: Callable[[], Blip],
    decoding: Mapping[str, Any],
    wording: Wording,
    *,
    keep: int = 1,
    frame: int = 0,
    own_prompts: bool = False,
    scorer: Callable[[], Blip] | None = None,
) -> Callable[[Iterator[Item]], Iterator[Result]]:
    """The command of a captioning job: of each item's captions the best ``keep``, as records."""

    def run(items: Iterator[Item]) -> Iterator[Result]:
        items, asked = tee(items)
        found = captions(blip(), asked, decoding, frame=frame, own_prompts=own_prompts, scorer=scorer)
        for item, result in zip(items, found, strict=True):
            if isinstance(result, OpenBlipError):
                yield result
                continue
            yield [
                record(wording, item, one, scores, rank=rank if keep > 1 else None)
                for rank, (one, scores) in enumerate(result[:keep])
            ]

    return run


def prompts_of(column: str) -> Asked:
    """What a list asks of its pictures that names prompts in this column; without one the job's own prompt counts."""

    def asked(record: Record) -> Iterable[Mapping[str, str]]:
        given = record.extra.get(column)
        return ({},) if given is None or given == "" else ({"prompt": str(given)},)

    return asked


def _listed(found: Any) -> list[Caption] | OpenBlipError:
    return found if isinstance(found, OpenBlipError) else [found, *found.alternatives]
