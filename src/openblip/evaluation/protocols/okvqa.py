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

QUESTIONS, ANNOTATIONS = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
LIST = "okvqa_answer_list_train.json"


def read(folder: Path, preset: Preset) -> Items:
    people = files.answer_references(folder / ANNOTATIONS)
    items = []
    for where, entry in files.read(folder / QUESTIONS, ("questions",)):
        question, image, key = (entry.get(name) for name in ("question", "image_id", "question_id"))
        if not isinstance(question, str) or not isinstance(image, int) or not isinstance(key, int):
            raise EvaluationError(f"{where} lacks 'question', 'image_id' or 'question_id'")
        if key not in people:
            raise EvaluationError(f"{where}: question_id {key} is not in {ANNOTATIONS}")
        said = people[key]
        picture = image_file(folder, f"COCO_val2014_{image:012d}.jpg", "val2014", "images")
        kinds = said.question_type, said.answer_type
        items.append(Item(key, picture, question=question, answers=tuple(said.answers), kinds=kinds))
    return items


PROTOCOL = Protocol(
    name="okvqa",
    title="OK-VQA",
    task="answer",
    published_at="okvqa.allenai.org, cocodataset.org (val2014), and LAVIS for the answer list",
    presets={
        "paper": AnswerPreset(
            split="val2014",
            files=(QUESTIONS, ANNOTATIONS, "answer_list.json"),
            count=5046,
            inference="rank",
            answer_list="answer_list.json",
            note="the paper has no such row: its ranking for VQAv2",
        ),
        "lavis": AnswerPreset(
            split="val2014",
            files=(QUESTIONS, ANNOTATIONS, LIST),
            count=5046,
            inference="rank",
            answer_list=LIST,
            published=(Score("LAVIS", ("blip_okvqa",), {"accuracy": 55.4}),),
        ),
        "mmpretrain": AnswerPreset(
            split="val2014",
            files=(QUESTIONS, ANNOTATIONS),
            count=5046,
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
