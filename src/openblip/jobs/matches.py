"""Matching scores, labels and embeddings of a job's items, and statements about pairs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Literal

from openblip.data.records import Record
from openblip.errors import InputError, OpenBlipError
from openblip.jobs.annotator import BlipAnnotator, iter_batches
from openblip.jobs.items import Fields, Item
from openblip.jobs.records import pack_embedding
from openblip.jobs.run import Result

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.pipelines.inputs import EncodedImage
    from openblip.results import Match


@dataclass
class MatchAnnotator(BlipAnnotator):
    """Scores of texts for every item.

    Attributes:
        texts: The texts.
    """

    texts: Sequence[str] = ()

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: the scores of each text."""
        sources = (item.source(self.frame) for item in items)
        for matches in self.blip.match(sources, list(self.texts), on_error="return"):
            if isinstance(matches, OpenBlipError):
                yield matches
            else:
                yield [{"text": text} | match.to_dict() for text, match in zip(self.texts, matches, strict=True)]


@dataclass
class SidecarMatchAnnotator(BlipAnnotator):
    """Scores of the texts in the sidecar file of every item, one text per line.

    Attributes:
        suffix: Suffix of the sidecar files.
    """

    suffix: str = ".txt"

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: the scores of the texts next to it."""
        for batch in iter_batches(items, self.blip.batch_size):
            texts: dict[Item, list[str]] = {}
            errors: dict[Item, OpenBlipError] = {}
            for item in batch:
                try:
                    texts[item] = read_sidecar(item, self.suffix)
                except InputError as error:  # noqa: PERF203 (an error belongs to its item)
                    errors[item] = error
            matches = match_own_texts(self.blip, texts, self.frame)
            for item in batch:
                result = errors.get(item) or matches[item]
                if isinstance(result, OpenBlipError):
                    yield result
                else:
                    yield [{"text": text} | match.to_dict() for text, match in zip(texts[item], result, strict=True)]


def match_own_texts(
    blip: Blip, texts: Mapping[Item, Sequence[str]], frame: int = 0
) -> dict[Item, list[Match] | OpenBlipError]:
    """Return the scores of each item's own texts. Every image is read and encoded once.

    Args:
        blip: The model.
        texts: The texts of each item.
        frame: Frame of animations to read.
    """
    sources = [item.source(frame) for item in texts]
    results: dict[Item, list[Match] | OpenBlipError] = {}
    pairs: list[tuple[list[Match], EncodedImage, str]] = []
    for item, image in zip(texts, blip.encode_images(sources, task="retrieval", on_error="return"), strict=True):
        if isinstance(image, OpenBlipError):
            results[item] = image
            continue
        matches: list[Match] = []
        results[item] = matches
        pairs += [(matches, image, text) for text in texts[item]]
    if pairs:
        scores = blip.match([image for _, image, _ in pairs], [text for _, _, text in pairs], paired=True)
        for (matches, _, _), score in zip(pairs, scores, strict=True):
            matches.append(score)
    return results


def read_sidecar(item: Item, suffix: str) -> list[str]:
    """Return the lines of an item's sidecar file that are not blank.

    Raises:
        InputError: The image has no sidecar file, or the file cannot be read or is empty.
    """
    if item.file is None:
        raise InputError("the image must be a file to have a sidecar")
    path = os.path.splitext(item.file)[0] + suffix  # noqa: PTH122
    try:
        with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123
            lines = [line.strip() for line in file if line.strip()]
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: the sidecar does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"cannot read {path}: {reason}") from error
    if not lines:
        raise InputError(f"{path} is empty")
    return lines


@dataclass
class ClassifyAnnotator(BlipAnnotator):
    """The best labels of every item.

    Attributes:
        labels: The labels to choose from.
        template: Text of a label; {} is replaced by the label.
        by: Score by embeddings ("itc") or by reading the text together with the image ("itm").
        n: Number of labels per image.
    """

    labels: Sequence[str] = ()
    template: str = "a picture of {}"
    by: Literal["itc", "itm"] = "itc"
    n: int = 1

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: its most probable labels."""
        sources = (item.source(self.frame) for item in items)
        classifications = self.blip.classify(
            sources, list(self.labels), template=self.template, by=self.by, n=self.n, on_error="return"
        )
        for classification in classifications:
            if isinstance(classification, OpenBlipError):
                yield classification
                continue
            yield [
                {"rank": rank if self.n > 1 else None, "label": label.text, "probability": label.probability}
                for rank, label in enumerate(classification.labels)
            ]


@dataclass
class EmbedAnnotator(BlipAnnotator):
    """The embedding of every item: float32 and L2-normalized."""

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the record of each image: its embedding."""
        sources = (item.source(self.frame) for item in items)
        for embedding in self.blip.embed_images(sources, on_error="return"):
            if isinstance(embedding, OpenBlipError):
                yield embedding
            else:
                yield [{"embedding": pack_embedding(embedding)}]


@dataclass
class CompareAnnotator(BlipAnnotator):
    """Whether statements about the pairs are true.

    Attributes:
        statements: The statements; by default each item has its own, in the field "text".
    """

    statements: Sequence[str] = ()

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each pair: a judgment of each statement."""
        if len(self.statements) > 1:  # a pair is encoded once
            for item in items:
                images = item.source(self.frame), item.source(self.frame, 1)
                results = self.blip.compare(*images, list(self.statements), on_error="return")
                if isinstance(results, OpenBlipError):
                    yield results
                else:
                    pairs = zip(self.statements, results, strict=True)
                    yield [{"text": text} | result.to_dict() for text, result in pairs]
            return
        items, lefts, rights, stated = tee(items, 4)
        comparisons = self.blip.compare(
            (item.source(self.frame) for item in lefts),
            (item.source(self.frame, 1) for item in rights),
            (self._statement(item) for item in stated),
            on_error="return",
        )
        for item, comparison in zip(items, comparisons, strict=True):
            if isinstance(comparison, OpenBlipError):
                yield comparison
            else:
                yield [{"text": self._statement(item)} | comparison.to_dict()]

    def _statement(self, item: Item) -> str:
        return self.statements[0] if self.statements else item.fields["text"]


def statement_fields(record: Record) -> Iterable[Fields]:
    """Return each statement about a pair in a list as the field of one item."""
    return [{"text": text} for text in record.captions]
