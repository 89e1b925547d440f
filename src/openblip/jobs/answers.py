"""Answers and boxes of a job's items. An image is read and encoded once, for any number of questions or expressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import tee
from typing import Any

from openblip.drawing import draw_boxes
from openblip.errors import ImageError, OpenBlipError
from openblip.jobs.annotator import BlipAnnotator, iter_batches
from openblip.jobs.drawings import Drawings
from openblip.jobs.items import Item
from openblip.jobs.records import Row
from openblip.jobs.run import Result
from openblip.preprocess.image import load_image
from openblip.results import Answer, Box


@dataclass
class AnswerAnnotator(BlipAnnotator):
    """Answers to questions about every item.

    Attributes:
        questions: The questions.
        options: Keyword arguments of [`Blip.ask`][openblip.Blip.ask].
    """

    questions: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: an answer for each question."""
        for answers in self._ask(items):
            if isinstance(answers, OpenBlipError):
                yield answers
                continue
            records: list[Row] = []
            for question, best in zip(self.questions, answers, strict=True):
                for rank, answer in enumerate((best, *best.alternatives)):
                    record = {
                        "question": question,
                        "text": answer.text,
                        "probability": answer.probability,
                        "score": answer.score,
                    }
                    records.append(record | {"rank": rank} if self.options.get("n", 1) > 1 else record)
            yield records

    def _ask(self, items: Iterator[Item]) -> Iterator[Sequence[Answer] | OpenBlipError]:
        """Yield the answers to all questions about each item."""
        if len(self.questions) == 1:
            sources = (item.source(self.frame) for item in items)
            for answer in self.blip.ask(sources, self.questions[0], on_error="return", **self.options):
                yield answer if isinstance(answer, OpenBlipError) else [answer]
            return
        for batch in iter_batches(items, self.blip.batch_size):
            images = [item.source(self.frame) for item in batch]
            for image in self.blip.encode_images(images, task="vqa", on_error="return"):
                if isinstance(image, OpenBlipError):
                    yield image
                else:
                    yield self.blip.ask(image, list(self.questions), on_error="return", **self.options)


@dataclass
class BoxAnnotator(BlipAnnotator):
    """Boxes of expressions in every item.

    Attributes:
        expressions: The expressions.
        drawings: Where to draw the boxes.
    """

    expressions: Sequence[str] = ()
    drawings: Drawings | None = None

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: a box for each expression."""
        items, located = tee(items)
        for item, boxes in zip(items, self._ground(located), strict=True):
            if isinstance(boxes, OpenBlipError):
                yield boxes
                continue
            drawing = {}
            if self.drawings is not None:
                try:
                    image = draw_boxes(
                        load_image(item.source(self.frame)), [box.edges for box in boxes], list(self.expressions)
                    )
                except ImageError as error:  # the file is gone
                    yield error
                    continue
                drawing = {"drawing": str(self.drawings.save(item, image))}
            yield [
                {
                    "expression": expression,
                    "bbox": [box.left, box.top, box.right - box.left, box.bottom - box.top],
                    "probability": box.probability,
                    "score": box.score,
                    **drawing,
                }
                for expression, box in zip(self.expressions, boxes, strict=True)
            ]

    def _ground(self, items: Iterator[Item]) -> Iterator[Sequence[Box] | OpenBlipError]:
        """Yield the boxes of all expressions in each item."""
        if len(self.expressions) == 1:
            sources = (item.source(self.frame) for item in items)
            for box in self.blip.ground(sources, self.expressions[0], on_error="return"):
                yield box if isinstance(box, OpenBlipError) else [box]
            return
        for batch in iter_batches(items, self.blip.batch_size):
            images = [item.source(self.frame) for item in batch]
            for image in self.blip.encode_images(images, task="grounding", on_error="return"):
                if isinstance(image, OpenBlipError):
                    yield image
                else:
                    yield self.blip.ground(image, list(self.expressions), on_error="return")
