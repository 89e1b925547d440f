"""A user's own set: its items, and the settings that go with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from openblip.data.images import FileImage
from openblip.errors import EvaluationError
from openblip.evaluation.protocols.base import AnswerPreset, CaptionPreset, Item, Items, Preset, RetrievalPreset

KINDS = ("caption", "vqa", "retrieval")
PEOPLE = 10  # who answered each question of VQA


def own_items(source: Iterable[Any], kind: str = "") -> tuple[Items, Preset]:
    """Items of a user's own records, and the settings: captions if they have them, else questions with answers.

    ``kind`` is "caption", "vqa" or "retrieval"; "" takes what the records have. Where every question has ten answers
    they are judged as those of VQA, each left out in turn. Where one has fewer, an answer is right that equals any of
    them after normalisation: of one answer, or of two that differ, leaving one out would leave none to agree with.
    """
    records = list(source)
    for record in records:
        if not isinstance(record.images[0], FileImage):
            raise EvaluationError(f"{record.address}: pictures have to be files of their own to be evaluated")
        if len(record.images) > 1:
            raise EvaluationError(f"{record.address}: {len(record.images)} pictures; one's own sets are about one each")
    kind = kind or ("caption" if any(record.captions for record in records) else "vqa")
    if kind not in KINDS:
        raise EvaluationError(f"a set of one's own is for caption, vqa or retrieval, not {kind!r}")
    items, settings = _questions(records) if kind == "vqa" else _captions(records, kind)
    if not items:
        raise EvaluationError(
            f"no record has what {kind} needs: {'captions' if kind != 'vqa' else 'questions with answers'}"
        )
    return items, settings


def _captions(records: list[Any], kind: str) -> tuple[Items, Preset]:
    items = [
        Item(record.address, record.images[0].address, tuple(record.captions)) for record in records if record.captions
    ]
    if kind == "retrieval":
        return items, RetrievalPreset(split="own", files=(), count=len(items), k=256, max_words=30)
    return items, CaptionPreset(split="own", files=(), count=len(items))


def _questions(records: list[Any]) -> tuple[Items, Preset]:
    items = [
        Item(f"{record.address}#{n}", record.images[0].address, question=one.text, answers=one.answers)
        for record in records
        for n, one in enumerate(record.questions)
        if one.answers
    ]
    rule: Literal["official", "exact"] = "official" if all(len(item.answers) == PEOPLE for item in items) else "exact"
    return items, AnswerPreset(split="own", files=(), count=len(items), inference="generate", rule=rule)
