"""OCR-VQA, test (``dataset.json`` of ocr-vqa.github.io: a book cover each, split 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import (
    AnswerPreset,
    Item,
    Items,
    Preset,
    Protocol,
    Score,
    answers_for_server,
    image_file,
)

FILES = ("dataset.json",)
TEST = 3
# Not verified: no page of the publisher was found that counts the questions. The card of howard-hou/OCR-VQA on the hub
# has 20,796 books in the test split, which agrees with it in size.
COUNT = 100_037


def read(folder: Path, preset: Preset) -> Items:
    path = folder / preset.files[0]
    whole = files.load(path)
    if not isinstance(whole, dict):
        raise EvaluationError(f"{path} is not an object of books")
    items: Items = []
    for book, entry in whole.items():
        if not isinstance(entry, dict):
            raise EvaluationError(f"{path}: book {book!r} is not an object")
        if entry.get("split") != TEST:
            continue
        suffix = Path(str(entry.get("imageURL", ""))).suffix
        if suffix not in (".jpg", ".png"):
            continue  # as in mmpretrain
        items += _questions(f"{path}: book {book!r}", entry, book, image_file(folder, f"{book}{suffix}", "images"))
    return items


def _questions(where: str, entry: dict[str, Any], book: str, image: str) -> Items:
    questions, answers = entry.get("questions"), entry.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        raise EvaluationError(f"{where} has not as many 'answers' as 'questions'")
    return [
        Item(f"{book}-{i}", image, question=str(question), answers=(str(answer),))
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]


def _preset(*published: Score, bare: bool = False) -> AnswerPreset:
    return AnswerPreset(
        split="test",
        files=FILES,
        count=COUNT,
        inference="generate",
        rule="exact",
        bare=bare,
        bare_answers=bare,
        published=published,
    )


PROTOCOL = Protocol(
    name="ocr-vqa",
    title="OCR-VQA",
    task="vqa",
    published_at="ocr-vqa.github.io",
    presets={
        "paper": _preset(),
        "lavis": _preset(),
        "mmpretrain": _preset(Score("mmpretrain", ("blip-base_3rdparty_vqa",), {"accuracy": 28.30}), bare=True),
    },
    read=read,
    result="ocrvqa_result.json",
    server=answers_for_server,
)
