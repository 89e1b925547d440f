"""MSVD-QA, its 13,157 test questions, zero-shot: ``youtube_mapping.txt`` names the clip of each ``video_id``."""

from __future__ import annotations

from pathlib import Path

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Items, Preset, Protocol, image_file
from openblip.evaluation.protocols.videos import QUESTIONS, answer_presets, questions

MAPPING = "youtube_mapping.txt"


def read(folder: Path, preset: Preset) -> Items:
    names = _names(folder / MAPPING)

    def locate(where: str, video: int) -> str:
        if f"vid{video}" not in names:
            raise EvaluationError(f"{where}: video_id {video} is not in {MAPPING}")
        return image_file(folder, f"{names[f'vid{video}']}.avi", "YouTubeClips", "videos")

    return questions(folder / QUESTIONS, locate)


def _names(path: Path) -> dict[str, str]:
    """The clip of each "vidN": lines of a clip's name and that."""
    found = {}
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if line.strip():
            try:
                name, video = line.split()
            except ValueError as error:
                raise EvaluationError(f"{path}:{number} is not the name of a clip and vidN: {line[:60]!r}") from error
            if video in found:
                raise EvaluationError(f"{path}:{number}: {video} is there a second time")
            found[video] = name
    return found


PROTOCOL = Protocol(
    name="msvd-qa",
    title="MSVD-QA",
    task="vqa",
    published_at=(
        "github.com/xudejing/video-question-answering (questions and youtube_mapping.txt), "
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (answer list) and "
        "www.cs.utexas.edu/users/ml/clamp/videoDescription (YouTubeClips)"
    ),
    presets=answer_presets(13_157, "paper, table 11", 35.2, MAPPING),
    read=read,
)
