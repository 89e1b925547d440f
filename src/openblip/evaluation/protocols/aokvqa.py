"""A-OKVQA, direct answers, val (`aokvqa_v1p0_val.json` of allenai)."""

from __future__ import annotations

from pathlib import Path

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
from openblip.evaluation.protocols.readers import check_texts, find_image, get_fields

ANSWERS = "specialized_vocab_train.json"
# The paper (Schwenk et al. 2022) states 17.1K, 1.1K and 6.7K for train, val and test, the hub's viewer of
# HuggingFaceM4/A-OKVQA 1.15k. The exact number comes from users' reports of the file, not from its publisher.
VAL = Split("val", ("aokvqa_v1p0_val.json", ANSWERS), 1145)


def read(folder: Path, preset: Preset) -> Items:
    """Read the questions with people's direct answers."""
    items = []
    for location, entry in files.read_entries(folder / preset.split.files[0]):
        question, image_id, question_id, answers = get_fields(
            location, entry, question=str, image_id=int, question_id=str, direct_answers=list
        )
        image = find_image(folder, f"{image_id:012d}.jpg", "val2017", "images")
        texts = check_texts(location, "direct_answers", answers)
        items.append(Item(question_id, image, question=question, answers=texts))
    return items


PROTOCOL = Protocol(
    name="aokvqa",
    title="A-OKVQA",
    published_at="github.com/allenai/aokvqa, cocodataset.org (val2017)",
    presets=vqa_presets(
        VqaPreset(split=VAL, inference="rank", rule="direct", answer_list=ANSWERS),
        {"lavis": (PublishedScore("LAVIS", ("blip_aokvqa",), {"accuracy": 56.2}),)},
    ),
    reader=read,
    server_file=ServerFile("aokvqa_result.json", server.build_direct_answers),
)
