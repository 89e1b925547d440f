"""VQAv2, test2015 (the authors' ``vqa_test.json`` and ``answer_list.json``): answered here, scored by the server."""

from __future__ import annotations

from pathlib import Path

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
from openblip.evaluation.protocols.readers import fields

FILES = ("vqa_test.json", "answer_list.json")
COUNT = 447_793  # visualqa.org/download.html


def read(folder: Path, preset: Preset) -> Items:
    items = []
    for where, entry in files.read(folder / preset.files[0]):
        question, name, key = fields(where, entry, question=str, image=str, question_id=int)
        items.append(Item(key, image_file(folder, name, "images"), question=question))
    return items


def _preset(*published: Score, bare: bool = False) -> AnswerPreset:
    return AnswerPreset(
        split="test2015",
        files=FILES,
        count=COUNT,
        inference="rank",
        rule="",
        answer_list="answer_list.json",
        bare=bare,
        published=published,
    )


PROTOCOL = Protocol(
    name="vqa-v2",
    title="VQAv2",
    task="vqa",
    published_at="https://storage.googleapis.com/sfr-vision-language-research/datasets/ and visualqa.org (test2015)",
    presets={
        "paper": _preset(
            Score("paper", ("model_vqa",), {"test-dev": 78.24, "test-std": 78.17}),
            Score("paper", ("model_base_vqa_capfilt_large",), {"test-dev": 78.25, "test-std": 78.32}),
        ),
        "lavis": _preset(Score("LAVIS", ("model_base_vqa_capfilt_large",), {"test-dev": 78.23, "test-std": 78.29})),
        "mmpretrain": _preset(Score("mmpretrain", ("blip-base_3rdparty_vqa",), {"test": 78.20}), bare=True),
    },
    read=read,
    result="vqa_result.json",
    server=answers_for_server,
)
