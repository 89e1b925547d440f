"""Captions: beam search with the settings of a preset, and the caption metrics, also by domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from openblip.errors import OpenBlipError
from openblip.evaluation.evaluators.base import Evaluator, TaskScores, parse_text
from openblip.evaluation.metrics import captions
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import CaptionPreset, Item, Items
from openblip.evaluation.report import ReportItem


class CaptionEvaluator(Evaluator[str]):
    """Evaluates captions. A prediction is the text without the prompt."""

    action = "described"
    preset: CaptionPreset

    def predict(self, items: Items) -> Iterator[str | OpenBlipError]:
        """Yield the caption of each image, without the prompt."""
        results = self.blip.caption(
            (item.source for item in items),
            prompt=self.preset.prompt,
            num_beams=self.preset.num_beams,
            min_new_tokens=self.preset.min_new_tokens,
            max_new_tokens=self.preset.max_new_tokens,
            repetition_penalty=self.preset.repetition_penalty,
            on_error="return",
        )
        for result in results:
            yield result if isinstance(result, OpenBlipError) else remove_prompt(self.preset.prompt, result.text)

    def parse(self, value: object) -> str:
        """Return a caption from its JSON value."""
        return parse_text(value)

    def score(self, items: Items, predictions: Mapping[ItemId, str]) -> TaskScores:
        """Compute the caption metrics, and CIDEr and SPICE of each domain."""
        references = {item.id: item.texts for item in items if item.texts}
        if not references:
            return TaskScores({})
        scores = captions.score({key: predictions[key] for key in references}, references, java=self.java)
        metrics = dict(scores.corpus)
        for domain in dict.fromkeys(item.domain for item in items if item.domain):
            # As on the server, the CIDEr of a domain depends on the images of the domain alone.
            domain_references = {item.id: item.texts for item in items if item.domain == domain and item.texts}
            domain_predictions = {key: predictions[key] for key in domain_references}
            domain_scores = captions.score(domain_predictions, domain_references, java=self.java)
            metrics |= {f"{domain} {name}": domain_scores[name] for name in ("CIDEr", "SPICE")}
        notes = [f"{name}: {reason}" for name, reason in scores.missing.items()]
        ciders = {key: values["CIDEr"] for key, values in scores.items.items()}
        return TaskScores(metrics, ciders, notes, scores.intervals())

    def show(self, item: Item, prediction: str | None, error: str, score: float | None) -> ReportItem:
        """Return the caption next to the references."""
        caption = error if prediction is None else prediction
        lines = [("caption", caption), *(("reference", text) for text in item.texts)]
        return ReportItem(item.id, item.image, lines, score, metric="CIDEr")


def remove_prompt(prompt: str | None, text: str) -> str:
    """Remove the prompt from the start of a caption.

    The originals remove as many characters as the prompt has, which removes a letter if a word piece continues the
    prompt.

    Args:
        prompt: The prompt that was asked for. The checkpoint's own prompt (`None`) is not part of the text.
        text: The caption.

    Returns:
        The text after the prompt.
    """
    return text.removeprefix(prompt.strip()).lstrip() if prompt else text
