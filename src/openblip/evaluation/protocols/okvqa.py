"""OK-VQA, its test set: the questions about COCO's val2014 (VQA's questions and annotations files)."""

from __future__ import annotations

from pathlib import Path

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
from openblip.evaluation.protocols.readers import fields

QUESTIONS, ANNOTATIONS = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
LIST = "okvqa_answer_list_train.json"
COUNT = 5046  # 9,009 to train on and these: the card of HuggingFaceM4/OK-VQA on the hub


def read(folder: Path, preset: Preset) -> Items:
    people = files.answer_references(folder / ANNOTATIONS)
    items = []
    for where, entry in files.read(folder / QUESTIONS, ("questions",)):
        question, image, key = fields(where, entry, question=str, image_id=int, question_id=int)
        if key not in people:
            raise EvaluationError(f"{where}: question_id {key} is not in {ANNOTATIONS}")
        said = people[key]
        picture = image_file(folder, f"COCO_val2014_{image:012d}.jpg", "val2014", "images")
        kinds = said.question_type, said.answer_type
        items.append(Item(key, picture, question=question, answers=tuple(said.answers), kinds=kinds))
    asked = {item.id for item in items}
    if lacking := [key for key in people if key not in asked]:
        raise EvaluationError(f"{folder / ANNOTATIONS}: question_id {lacking[0]!r} is not in {QUESTIONS}")
    return items


PROTOCOL = Protocol(
    name="okvqa",
    title="OK-VQA",
    task="vqa",
    published_at="okvqa.allenai.org, cocodataset.org (val2014), and LAVIS for the answer list",
    presets={
        "paper": AnswerPreset(
            split="val2014",
            files=(QUESTIONS, ANNOTATIONS, "answer_list.json"),
            count=COUNT,
            inference="rank",
            answer_list="answer_list.json",
            note="the paper has no such row: its ranking for VQAv2",
        ),
        "lavis": AnswerPreset(
            split="val2014",
            files=(QUESTIONS, ANNOTATIONS, LIST),
            count=COUNT,
            inference="rank",
            rule="lavis",
            answer_list=LIST,
            published=(Score("LAVIS", ("blip_okvqa",), {"accuracy": 55.4}),),
        ),
        "mmpretrain": AnswerPreset(
            split="val2014",
            files=(QUESTIONS, ANNOTATIONS),
            count=COUNT,
            inference="generate",
            rule="mmpretrain",
            bare=True,
            published=(Score("mmpretrain", ("blip-base_3rdparty_vqa",), {"accuracy": 40.59}),),
        ),
    },
    read=read,
    result="okvqa_result.json",
    server=answers_for_server,
)
