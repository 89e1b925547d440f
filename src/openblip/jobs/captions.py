"""Captions of a job's items: generated, ranked by a matching model, and put into a template."""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import tee
from typing import TYPE_CHECKING, Any

from openblip.data.records import Record
from openblip.errors import InputError, OpenBlipError
from openblip.jobs.annotator import BlipAnnotator, iter_batches
from openblip.jobs.items import Fields, Item
from openblip.jobs.matches import match_own_texts
from openblip.jobs.records import Row
from openblip.jobs.run import Result
from openblip.results import Caption

if TYPE_CHECKING:
    from openblip.blip import Blip


@dataclass(frozen=True)
class CaptionTemplate:
    """The text to write for a caption.

    Attributes:
        template: Text in which {caption}, {name} (of the file) and {folder} are filled in.
        prefix: Text before the caption.
        suffix: Text after the caption.

    Raises:
        InputError: The template is malformed or has other fields.
    """

    template: str = "{caption}"
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise InputError(f"--template {self.template!r} is malformed: {error}") from error
        for _, name, format_spec, conversion in parts:
            if name is not None and (name not in ("caption", "name", "folder") or format_spec or conversion):
                raise InputError(f"--template may contain {{caption}}, {{name}} and {{folder}}, got {{{name}}}")

    def fill(self, item: Item, caption: str) -> str:
        """Return the text to write for a caption of an item."""
        folder, name = os.path.split(item.file or item.inner_path)
        return self.template.format(
            caption=self.prefix + caption + self.suffix,
            name=os.path.splitext(name)[0],  # noqa: PTH122
            folder=os.path.basename(os.path.abspath(folder) if item.file else folder),  # noqa: PTH100, PTH119
        )


@dataclass
class CaptionAnnotator(BlipAnnotator):
    """Captions for every item.

    Attributes:
        options: Keyword arguments of [`Blip.caption`][openblip.Blip.caption].
        keep: Number of captions per image to keep, the best ones.
        item_prompts: Use the field "prompt" of the items, where they have one.
        template: Text to write for a caption, if not the caption itself.
        matcher: Model that ranks the captions by how well they match the image. If it is the bundle of the captioner,
            the confidence of captions takes the match into account.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 1
    item_prompts: bool = False
    template: CaptionTemplate | None = None
    matcher: Blip | None = None

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: its captions, the best one first."""
        items, sources = tee(items)
        prompt = self.options.get("prompt")  # not an option of the pipeline: items may have their own
        pipeline = self.blip.pipeline("caption", **{**self.options, "prompt": None if self.item_prompts else prompt})
        images = ((item.source(self.frame), item.fields.get("prompt", prompt)) for item in sources)
        captions = pipeline.run(images)
        if self.matcher is not None:
            yield from self._run_ranked(self.matcher, zip(items, captions, strict=True))
            return
        for item, caption in zip(items, captions, strict=True):
            if isinstance(caption, OpenBlipError):
                yield caption
                continue
            candidates = [caption, *caption.alternatives][: self.keep]
            yield [self._to_record(item, candidate, rank) for rank, candidate in enumerate(candidates)]

    def _run_ranked(self, matcher: Blip, captioned: Iterator[tuple[Item, Caption | OpenBlipError]]) -> Iterator[Result]:
        """Yield the records of captioned items, with the captions that match best first."""
        calibration = self.blip.pipeline("caption").model.confidence if matcher is self.blip else None
        if calibration is not None and calibration.with_itm is None:
            calibration = None
        for batch in iter_batches(captioned, self.blip.batch_size):
            candidates = {item: [c, *c.alternatives] for item, c in batch if not isinstance(c, OpenBlipError)}
            texts = {item: [caption.text for caption in captions] for item, captions in candidates.items()}
            matches = match_own_texts(matcher, texts, self.frame)
            for item, caption in batch:
                result = caption if isinstance(caption, OpenBlipError) else matches[item]
                if isinstance(result, OpenBlipError):
                    yield result
                    continue
                scored = sorted(zip(candidates[item], result, strict=True), key=lambda pair: -pair[1].probability)
                records = []
                for rank, (candidate, match) in enumerate(scored[: self.keep]):
                    confidence = candidate.confidence
                    if calibration is not None:
                        confidence = calibration.probability(candidate.score, match.probability)
                    record = self._to_record(item, replace(candidate, confidence=confidence), rank)
                    records.append(record | match.to_dict())
                yield records

    def _to_record(self, item: Item, caption: Caption, rank: int) -> Row:
        text = caption.text if self.template is None else self.template.fill(item, caption.text)
        return {
            "rank": rank if self.keep > 1 else None,
            "text": text,
            "generated": caption.text if text != caption.text else None,
            "logprob": caption.logprob,
            "score": caption.score,
            "confidence": caption.confidence,
            "finished": caption.finished,
            "unmet": caption.unmet or None,
        }


def prompt_fields(column: str, record: Record) -> Iterable[Fields]:
    """Return the prompt in a column of a list as the field of one item; an empty cell leaves the command's prompt."""
    prompt = record.extra.get(column)
    return ({},) if prompt is None or prompt == "" else ({"prompt": str(prompt)},)
