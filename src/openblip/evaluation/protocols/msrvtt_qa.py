"""MSRVTT-QA, its 72,821 test questions, zero-shot: the video of ``video_id`` N is videoN.mp4 of MSR-VTT."""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation.protocols.base import Items, Preset, Protocol, image_file
from openblip.evaluation.protocols.videos import QUESTIONS, answer_presets, questions


def read(folder: Path, preset: Preset) -> Items:
    def locate(where: str, video: int) -> str:
        return image_file(folder, f"video{video}.mp4", "videos", "TestVideo")

    return questions(folder / QUESTIONS, locate)


PROTOCOL = Protocol(
    name="msrvtt-qa",
    title="MSRVTT-QA",
    task="vqa",
    published_at=(
        "github.com/xudejing/video-question-answering (questions), "
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (answer list) and "
        "ms-multimedia-challenge.com/2017/dataset (videos, into videos/)"
    ),
    presets=answer_presets(72_821, "paper, table 11", 19.2),
    read=read,
)
