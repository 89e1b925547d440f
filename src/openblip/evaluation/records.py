"""A user's own records as items of an evaluation, with the settings that fit them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from openblip.data.images import image_source
from openblip.data.records import Record
from openblip.errors import EvaluationError
from openblip.evaluation.protocols.base import CaptionPreset, Item, Items, Preset, RetrievalPreset, Split, VqaPreset
from openblip.preprocess.image import ImageSource

RecordTask = Literal["caption", "vqa", "retrieval"]
RECORD_TASKS: tuple[RecordTask, ...] = get_args(RecordTask)
OFFICIAL_ANSWERS = 10  # per question of VQA


def build_items(records: Iterable[Record], task: str = "") -> tuple[Items, Preset]:
    """Build the items and the settings for a user's own records.

    If every question has ten answers, they are scored as VQA scores them, each person left out in turn. Otherwise an
    answer is right if it equals any given answer after normalization: leaving out the only answer, or one of two
    different ones, would leave nothing to agree with.

    Args:
        records: The records, with one image each: a file, a member of a tar, or an image in memory.
        task: "caption", "vqa" or "retrieval"; "" for captions if any record has some, else questions.

    Returns:
        The items, and the settings.

    Raises:
        EvaluationError: If a record has several images, if there is no such task, or if no record fits the task.
    """
    records = list(records)
    for record in records:
        if len(record.images) > 1:
            raise EvaluationError(f"{record.address}: a record must have one image, got {len(record.images)}")
    task = task or ("caption" if any(record.captions for record in records) else "vqa")
    if task not in RECORD_TASKS:
        raise EvaluationError(f"the task of your records must be {', '.join(RECORD_TASKS)}, got {task!r}")
    items = _question_items(records) if task == "vqa" else _caption_items(records)
    if not items:
        needs = "questions with answers" if task == "vqa" else "captions"
        raise EvaluationError(f"{task} needs records with {needs}, got none")
    split = Split("own", (), len(items))
    if task == "retrieval":
        return items, RetrievalPreset(split=split, shortlist=256, max_words=30)
    if task == "caption":
        return items, CaptionPreset(split=split)
    has_official_answers = all(len(item.answers) == OFFICIAL_ANSWERS for item in items)
    return items, VqaPreset(split=split, inference="generate", rule="official" if has_official_answers else "exact")


def _caption_items(records: list[Record]) -> Items:
    return [
        Item(record.address, record.images[0].address, tuple(record.captions), content=_content(record))
        for record in records
        if record.captions
    ]


def _question_items(records: list[Record]) -> Items:
    items = []
    for record in records:
        for number, question in enumerate(record.questions):
            if question.answers:
                item_id = f"{record.address}#{number}"
                image = record.images[0].address
                answers = tuple(question.answers)
                items.append(Item(item_id, image, question=question.text, answers=answers, content=_content(record)))
    return items


def _content(record: Record) -> ImageSource | None:
    """Return the image of a record, or a file object that reads it; `None` for a path or an address."""
    source = image_source(record.images[0])
    return None if isinstance(source, str) else source
