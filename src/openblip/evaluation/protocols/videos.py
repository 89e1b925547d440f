"""Questions about videos, zero-shot: the settings and the reader that MSRVTT-QA and MSVD-QA share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items, Preset, PresetName, PublishedScore, Split, VqaPreset
from openblip.evaluation.protocols.builders import paper_only_presets
from openblip.evaluation.protocols.readers import get_fields

QUESTIONS, ANSWERS = "test_qa.json", "answer_list.json"


def video_question_presets(count: int, accuracy: float, *mappings: str) -> dict[PresetName, Preset]:
    """Build the presets of a benchmark of questions about videos.

    The paper publishes 16 frames, the unchanged VQA model and top-1 accuracy, but no code. We rank the 3,128 answers of
    VQA in two steps, as the paper does for VQA.

    Args:
        count: The number of questions.
        accuracy: The published accuracy.
        *mappings: Files besides the questions and the answer list.

    Returns:
        A preset per reference.
    """
    return paper_only_presets(
        VqaPreset(
            split=Split("test", (QUESTIONS, *mappings, ANSWERS), count),
            inference="rank",
            rule="exact",
            answer_list=ANSWERS,
            num_frames=16,
        ),
        # The paper does not say which of its VQA models it used.
        PublishedScore("paper, table 11", ("model_vqa", "model_base_vqa_capfilt_large"), {"accuracy": accuracy}),
    )


def read_questions(path: Path, locate: Callable[[str, int], str]) -> Items:
    """Read entries {"id", "video_id", "question", "answer"} of github.com/xudejing/video-question-answering.

    Args:
        path: The file of questions.
        locate: Returns the path of a video by the location of the entry, for error messages, and the `video_id`.

    Returns:
        The questions.

    Raises:
        EvaluationError: If the file or an entry is broken, or if an id occurs twice.
    """
    entries = []
    for location, entry in files.read_entries(path, ("questions",)):
        key, video_id, question, answer = get_fields(location, entry, id=int, video_id=int, question=str, answer=str)
        entries.append((location, key, Item(key, locate(location, video_id), question=question, answers=(answer,))))
    return list(files.index_unique(entries).values())
