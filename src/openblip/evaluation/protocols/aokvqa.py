"""A-OKVQA, direct answers, val (``aokvqa_v1p0_val.json`` of allenai)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.evaluation import files
from openblip.evaluation.protocols.base import AnswerPreset, Item, Items, Preset, Protocol, Score, image_file
from openblip.evaluation.protocols.readers import fields, some_texts

FILES = ("aokvqa_v1p0_val.json", "specialized_vocab_train.json")
# The paper (Schwenk et al. 2022) says 17.1K, 1.1K and 6.7K to train, validate and test, the hub's viewer of
# HuggingFaceM4/A-OKVQA 1.15k; the exact number comes from users' reports of the file, and not from its publisher.
COUNT = 1145


def read(folder: Path, preset: Preset) -> Items:
    items = []
    for where, entry in files.read(folder / preset.files[0]):
        question, image, key, said = fields(
            where, entry, question=str, image_id=int, question_id=str, direct_answers=list
        )
        picture = image_file(folder, f"{image:012d}.jpg", "val2017", "images")
        items.append(Item(key, picture, question=question, answers=some_texts(where, "direct_answers", said)))
    return items


def for_server(predictions: Mapping[Any, str]) -> dict[str, dict[str, str]]:
    """The file of the leaderboard."""
    return {str(key): {"multiple_choice": "", "direct_answer": text} for key, text in predictions.items()}


def _preset(*published: Score, bare: bool = False) -> AnswerPreset:
    return AnswerPreset(
        split="val",
        files=FILES,
        count=COUNT,
        inference="rank",
        rule="direct",
        answer_list=FILES[1],
        bare=bare,
        published=published,
    )


PROTOCOL = Protocol(
    name="aokvqa",
    title="A-OKVQA",
    task="vqa",
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
