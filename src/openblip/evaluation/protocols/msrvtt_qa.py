"""MSRVTT-QA, 72,821 test questions, zero-shot: `video_id` N is videoN.mp4 of MSR-VTT."""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation.protocols.base import Items, Preset, Protocol
from openblip.evaluation.protocols.readers import find_image
from openblip.evaluation.protocols.videos import QUESTIONS, read_questions, video_question_presets


def read(folder: Path, preset: Preset) -> Items:
    """Read the questions."""

    def locate(location: str, video_id: int) -> str:
        return find_image(folder, f"video{video_id}.mp4", "videos", "TestVideo")

    return read_questions(folder / QUESTIONS, locate)


PROTOCOL = Protocol(
    name="msrvtt-qa",
    title="MSRVTT-QA",
    published_at=(
        "github.com/xudejing/video-question-answering (questions), "
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (answer list) and "
        "ms-multimedia-challenge.com/2017/dataset (videos, into videos/)"
    ),
    presets=video_question_presets(72_821, 19.2),
    reader=read,
)
