"""MSVD-QA, 13,157 test questions, zero-shot: `youtube_mapping.txt` has the clip of each `video_id`."""

from __future__ import annotations

from pathlib import Path

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Items, Preset, Protocol
from openblip.evaluation.protocols.readers import find_image
from openblip.evaluation.protocols.videos import QUESTIONS, read_questions, video_question_presets

MAPPING = "youtube_mapping.txt"


def read(folder: Path, preset: Preset) -> Items:
    """Read the questions."""
    clips = _read_clips(folder / MAPPING)

    def locate(location: str, video_id: int) -> str:
        if f"vid{video_id}" not in clips:
            raise EvaluationError(f"{location}: video_id {video_id} is not in {MAPPING}")
        return find_image(folder, f"{clips[f'vid{video_id}']}.avi", "YouTubeClips", "videos")

    return read_questions(folder / QUESTIONS, locate)


def _read_clips(path: Path) -> dict[str, str]:
    """Return the clip of each "vidN", from lines "CLIP vidN"."""
    clips: dict[str, str] = {}
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            clip, video = line.split()
        except ValueError as error:
            raise EvaluationError(f"{path}:{number} must be the name of a clip and vidN, got {line[:60]!r}") from error
        if video in clips:
            raise EvaluationError(f"{path}:{number}: {video} occurs a second time")
        clips[video] = clip
    return clips


PROTOCOL = Protocol(
    name="msvd-qa",
    title="MSVD-QA",
    published_at=(
        "github.com/xudejing/video-question-answering (questions and youtube_mapping.txt), "
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (answer list) and "
        "www.cs.utexas.edu/users/ml/clamp/videoDescription (YouTubeClips)"
    ),
    presets=video_question_presets(13_157, 35.2, MAPPING),
    reader=read,
)
