"""A-OKVQA, direct answers, val (``aokvqa_v1p0_val.json`` of allenai)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import AnswerPreset, Item, Items, Preset, Protocol, Score, image_file

FILES = ("aokvqa_v1p0_val.json", "specialized_vocab_train.json")


def read(folder: Path, preset: Preset) -> Items:
    items = []
    for where, entry in files.read(folder / preset.files[0]):
        question, image, key, said = (
            entry.get(name) for name in ("question", "image_id", "question_id", "direct_answers")
        )
        if not isinstance(question, str) or not isinstance(image, int) or not isinstance(said, list) or key is None:
            raise EvaluationError(f"{where} lacks 'question', 'image_id', 'question_id' or 'direct_answers'")
        picture = image_file(folder, f"{image:012d}.jpg", "val2017", "images")
        items.append(Item(key, picture, question=question, answers=tuple(map(str, said))))
    return items


def for_server(predictions: Mapping[Any, str]) -> dict[str, dict[str, str]]:
    """The file of the leaderboard."""
    return {str(key): {"multiple_choice": "", "direct_answer": text} for key, text in predictions.items()}


def _preset(*published: Score, bare: bool = False) -> AnswerPreset:
    return AnswerPreset(
        split="val",
        files=FILES,
        count=1145,
        inference="rank",
        rule="direct",
        answer_list=FILES[1],
        bare=bare,
        published=published,
    )


PROTOCOL = Protocol(
    name="aokvqa",
    title="A-OKVQA",
    task="answer",
    published_at="github.com/allenai/aokvqa, cocodataset.org (val2017)",
    presets={
        "paper": _preset(),
        "lavis": _preset(Score("LAVIS", ("blip_aokvqa",), {"accuracy": 56.2})),
        "mmpretrain": _preset(bare=True),
    },
    read=read,
    result="aokvqa_result.json",
    server=for_server,
)
