"""Captions: beam search as a preset says, and the caption metrics, of each domain too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openblip.blip import Blip
from openblip.errors import OpenBlipError
from openblip.evaluation.metrics import captions
from openblip.evaluation.protocols.base import CaptionPreset, Items
from openblip.evaluation.report import Shown
from openblip.evaluation.tasks.base import Evaluated, Predict, Predicted


def predictor(blip: Blip, preset: CaptionPreset) -> Predict:
    def predict(items: Items) -> Iterator[Any]:
        found = blip.caption(
            (item.image for item in items), num_beams=preset.num_beams, min_new_tokens=preset.min_new_tokens,
            max_new_tokens=preset.max_new_tokens, repetition_penalty=preset.repetition_penalty, prompt=preset.prompt,
            on_error="return",
        )  # fmt: skip
        return (one if isinstance(one, OpenBlipError) else without(preset.prompt, one.text) for one in found)

    return predict


def without(prompt: str | None, text: str) -> str:
    """The text of a caption after the prompt that it was told to begin with; one of the checkpoint's own is not there.

    The originals cut off as many characters as the prompt has, which takes a letter where a word piece continues it.
    """
    return text.removeprefix(prompt.strip()).lstrip() if prompt else text


def scored(items: Items, predicted: Predicted, java: bool) -> Evaluated:
    done = predicted.of(items, "described")
    references = {item.id: item.texts for item in done if item.texts}
    metrics: dict[str, float | None] = {}
    each: dict[Any, dict[str, float]] = {}
    notes: list[str] = []
    if references:
        found = captions.score({key: predicted.texts[key] for key in references}, references, java=java)
        metrics, each = dict(found.corpus), found.items
        notes = [f"{name}: {reason}" for name, reason in found.missing.items()]
        for group in dict.fromkeys(item.group for item in done if item.group):
            # A domain's CIDEr is that of the domain alone, as the server computes it.
            own = {item.id: item.texts for item in done if item.group == group and item.texts}
            part = captions.score({key: predicted.texts[key] for key in own}, own, java=java)
            metrics |= {f"{group} {name}": part[name] for name in ("CIDEr", "SPICE")}
    shown = [
        Shown(
            item.id,
            item.image,
            [("caption", predicted.text(item.id)), *(("reference", text) for text in item.texts)],
            each[item.id]["CIDEr"] if item.id in each else None,
            measure="CIDEr",
        )
        for item in items
    ]
    return predicted.evaluated(metrics, shown, notes)
