"""Heat maps of a job's items (Grad-CAM)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from openblip.drawing import draw_explanation
from openblip.errors import ImageError, OpenBlipError
from openblip.jobs.annotator import BlipAnnotator
from openblip.jobs.drawings import Drawings
from openblip.jobs.items import Item
from openblip.jobs.records import Row
from openblip.jobs.run import Result
from openblip.preprocess.image import load_image
from openblip.results import Explanation


@dataclass
class ExplainAnnotator(BlipAnnotator):
    """Explanations of texts, of the model's caption, or of answers, for every item.

    Attributes:
        texts: Texts, captions or questions; without any, the model's caption is explained.
        options: Keyword arguments of [`Blip.explain`][openblip.Blip.explain].
        drawings: Where to draw the heat maps.
    """

    texts: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    drawings: Drawings | None = None

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield the records of each image: its heat maps."""
        list(self.blip.explain(iter(()), on_error="return", **self.options))  # wrong options end the job here
        for item in items:
            yield self._explain(item)

    def _explain(self, item: Item) -> Result:
        source = item.source(self.frame)
        texts = list(self.texts) if self.texts else None
        explained = self.blip.explain(source, texts, on_error="return", **self.options)
        if isinstance(explained, OpenBlipError):
            return explained
        explanations = cast("list[Explanation]", [explained] if isinstance(explained, Explanation) else explained)
        records = [to_record(explanation) for explanation in explanations]
        if self.drawings is not None:
            try:
                image = load_image(source)
            except ImageError as error:  # the file is gone
                return error
            for number, (record, explanation) in enumerate(zip(records, explanations, strict=True)):
                record["drawing"] = str(self.drawings.save(item, draw_explanation(image, explanation), number))
        return records


def to_record(explanation: Explanation) -> Row:
    """Return the record of an explanation. A question and its answer have the fields of an answer's record."""
    values = explanation.to_dict()
    if "answer" in values:
        values = {"question": values.pop("text"), "text": values.pop("answer"), **values}
    return values
