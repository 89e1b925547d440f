"""OK-VQA, test: questions about COCO's val2014, in the files of the VQA challenge."""

from __future__ import annotations

from pathlib import Path

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
from openblip.evaluation.protocols.readers import find_image, get_fields

QUESTIONS, ANNOTATIONS = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
PAPER_ANSWERS, LAVIS_ANSWERS = "answer_list.json", "okvqa_answer_list_train.json"
COUNT = 5046  # besides 9,009 for training: the card of HuggingFaceM4/OK-VQA on the hub


def read(folder: Path, preset: Preset) -> Items:
    """Read the questions with people's answers."""
    references = files.read_answer_references(folder / ANNOTATIONS)
    items = []
    for location, entry in files.read_entries(folder / QUESTIONS, ("questions",)):
        question, image_id, question_id = get_fields(location, entry, question=str, image_id=int, question_id=int)
        if question_id not in references:
            raise EvaluationError(f"{location}: question_id {question_id} is not in {ANNOTATIONS}")
        reference = references[question_id]
        items.append(
            Item(
                question_id,
                find_image(folder, f"COCO_val2014_{image_id:012d}.jpg", "val2014", "images"),
                question=question,
                answers=tuple(reference.answers),
                question_type=reference.question_type,
                answer_type=reference.answer_type,
            )
        )
    question_ids = {item.id for item in items}
    missing = [question_id for question_id in references if question_id not in question_ids]
    if missing:
        raise EvaluationError(f"{folder / ANNOTATIONS}: question_id {missing[0]!r} is not in {QUESTIONS}")
    return items


def _split(*answer_lists: str) -> Split:
    return Split("val2014", (QUESTIONS, ANNOTATIONS, *answer_lists), COUNT)


PROTOCOL = Protocol(
    name="okvqa",
    title="OK-VQA",
    published_at="okvqa.allenai.org, cocodataset.org (val2014), and LAVIS for the answer list",
    presets={
        "paper": VqaPreset(
            split=_split(PAPER_ANSWERS),
            inference="rank",
            answer_list=PAPER_ANSWERS,
            note="the paper has no such row: its ranking for VQAv2",
        ),
        "lavis": VqaPreset(
            split=_split(LAVIS_ANSWERS),
            inference="rank",
            rule="lavis",
            answer_list=LAVIS_ANSWERS,
            published=(PublishedScore("LAVIS", ("blip_okvqa",), {"accuracy": 55.4}),),
        ),
        "mmpretrain": VqaPreset(
            split=_split(),
            inference="generate",
            rule="mmpretrain",
            strip_punctuation=True,
            published=(PublishedScore("mmpretrain", ("blip-base_3rdparty_vqa",), {"accuracy": 40.59}),),
        ),
    },
    reader=read,
    server_file=ServerFile("okvqa_result.json", server.build_answers),
)
