"""OCR-VQA, test (`dataset.json` of ocr-vqa.github.io: one book cover per entry, split 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import (
    Item,
    Items,
    Preset,
    Protocol,
    PublishedScore,
    ServerFile,
    Split,
    VqaPreset,
)
from openblip.evaluation.protocols.builders import vqa_presets
from openblip.evaluation.protocols.readers import find_image

TEST_NUMBER = 3  # of the split in the file
# Not verified: no page of the publisher states the number of questions. The card of howard-hou/OCR-VQA on the hub has
# 20,796 books in the test split, which fits.
TEST = Split("test", ("dataset.json",), 100_037)


def read(folder: Path, preset: Preset) -> Items:
    """Read the questions of the test split."""
    path = folder / preset.split.files[0]
    books = files.read_json(path)
    if not isinstance(books, dict):
        raise EvaluationError(f"{path} must be an object of books")
    items: Items = []
    for book, entry in books.items():
        location = f"{path}: book {book!r}"
        if not isinstance(entry, dict):
            raise EvaluationError(f"{location} must be an object")
        suffix = Path(str(entry.get("imageURL", ""))).suffix
        if entry.get("split") == TEST_NUMBER and suffix in (".jpg", ".png"):  # mmpretrain skips other suffixes
            items += _read_questions(location, entry, book, find_image(folder, f"{book}{suffix}", "images"))
    return items


def _read_questions(location: str, entry: dict[str, Any], book: str, image: str) -> Items:
    questions, answers = entry.get("questions"), entry.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
        raise EvaluationError(f"{location} must have as many 'answers' as 'questions'")
    return [
        Item(f"{book}-{i}", image, question=str(question), answers=(str(answer),))
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]


PROTOCOL = Protocol(
    name="ocr-vqa",
    title="OCR-VQA",
    published_at="ocr-vqa.github.io",
    presets=vqa_presets(
        VqaPreset(split=TEST, inference="generate", rule="exact"),
        {"mmpretrain": (PublishedScore("mmpretrain", ("blip-base_3rdparty_vqa",), {"accuracy": 28.30}),)},
        strip_answers=True,
    ),
    reader=read,
    server_file=ServerFile("ocrvqa_result.json", server.build_answers),
)
