"""VQAv2, test2015 (the authors' `vqa_test.json` and `answer_list.json`), scored by the server."""

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
from openblip.evaluation.protocols.readers import find_image, get_fields

ANSWERS = "answer_list.json"
TEST = Split("test2015", ("vqa_test.json", ANSWERS), 447_793)  # count: visualqa.org/download.html


def read(folder: Path, preset: Preset) -> Items:
    """Read the questions."""
    items = []
    for location, entry in files.read_entries(folder / preset.split.files[0]):
        question, name, question_id = get_fields(location, entry, question=str, image=str, question_id=int)
        items.append(Item(question_id, find_image(folder, name, "images"), question=question))
    return items


PROTOCOL = Protocol(
    name="vqa-v2",
    title="VQAv2",
    published_at="https://storage.googleapis.com/sfr-vision-language-research/datasets/ and visualqa.org (test2015)",
    presets=vqa_presets(
        VqaPreset(split=TEST, inference="rank", rule="", answer_list=ANSWERS),
        {
            "paper": (
                PublishedScore("paper", ("model_vqa",), {"test-dev": 78.24, "test-std": 78.17}),
                PublishedScore("paper", ("model_base_vqa_capfilt_large",), {"test-dev": 78.25, "test-std": 78.32}),
            ),
            "lavis": (
                PublishedScore("LAVIS", ("model_base_vqa_capfilt_large",), {"test-dev": 78.23, "test-std": 78.29}),
            ),
            "mmpretrain": (PublishedScore("mmpretrain", ("blip-base_3rdparty_vqa",), {"test": 78.20}),),
        },
    ),
    reader=read,
    server_file=ServerFile("vqa_result.json", server.build_answers),
)
