"""Answers and boxes of a job's items. An image is read and encoded once, for any number of questions or expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from openblip.tasks import TaskName


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
        for answers in _run_texts(self, items, self.questions, "vqa", partial(self.blip.ask, **self.options)):
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
        results = _run_texts(self, located, self.expressions, "grounding", self.blip.ground)
        for item, boxes in zip(items, results, strict=True):
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


def _run_texts(
    annotator: BlipAnnotator, items: Iterator[Item], texts: Sequence[str], task: TaskName, run: Callable[..., Any]
) -> Iterator[Sequence[Any] | OpenBlipError]:
    """Yield the results of all texts for each item, by a method of the model. Images are encoded once."""
    if len(texts) == 1:
        sources = (item.source(annotator.frame) for item in items)
        for result in run(sources, texts[0], on_error="return"):
            yield result if isinstance(result, OpenBlipError) else [result]
        return
    for batch in iter_batches(items, annotator.batch_size):
        images = [item.source(annotator.frame) for item in batch]
        for image in annotator.blip.encode_images(images, task=task, on_error="return"):
            yield image if isinstance(image, OpenBlipError) else run(image, list(texts), on_error="return")
