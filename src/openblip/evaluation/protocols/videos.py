"""What the benchmarks of video share: presets that say how many frames are seen, and the readers of questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import (
    AnswerPreset,
    Item,
    Items,
    Preset,
    PresetName,
    RetrievalPreset,
    Score,
)
from openblip.evaluation.protocols.readers import fields

QUESTIONS, LIST = "test_qa.json", "answer_list.json"
ONLY = "only the paper has this row"


@dataclass(frozen=True, kw_only=True)
class VideoAnswerPreset(AnswerPreset):
    """Questions about ``frames`` of each video, uniformly sampled."""

    frames: int


@dataclass(frozen=True, kw_only=True)
class VideoRetrievalPreset(RetrievalPreset):
    """Texts for ``frames`` of each video, uniformly sampled, and videos for texts."""

    frames: int


def answer_presets(count: int, source: str, accuracy: float, *more: str) -> dict[PresetName, Preset]:
    """The settings of zero-shot answers about videos; ``more`` are files beside the questions and the answer list.

    Published are 16 frames, the VQA model as it is, and top-1 accuracy; no code. Answers are therefore found as the
    paper finds those of VQA: ranked, in two steps, among the 3,128 of its list.
    """

    def preset(*published: Score) -> Preset:
        return VideoAnswerPreset(
            split="test", files=(QUESTIONS, *more, LIST), count=count, inference="rank", rule="exact",
            answer_list=LIST, frames=16, published=published, note="" if published else ONLY,
        )  # fmt: skip

    # The paper does not say which of its VQA models this is.
    paper = Score(source, ("model_vqa", "model_base_vqa_capfilt_large"), {"accuracy": accuracy})
    return {"paper": preset(paper), "lavis": preset(), "mmpretrain": preset()}


def questions(path: Path, locate: Callable[[str, int], str]) -> Items:
    """The entries {"id", "video_id", "question", "answer"} of github.com/xudejing/video-question-answering.

    ``locate`` gives the file of a ``video_id``; it is told where the entry stands.
    """
    items: Items = []
    seen: set[Any] = set()
    for where, entry in files.read(path, ("questions",)):
        key, video, question, answer = fields(where, entry, id=int, video_id=int, question=str, answer=str)
        if key in seen:
            raise EvaluationError(f"{where}: id {key} is there a second time")
        seen.add(key)
        items.append(Item(key, locate(where, video), question=question, answers=(answer,)))
    return items
