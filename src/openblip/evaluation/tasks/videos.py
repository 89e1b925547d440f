"""Videos: retrieval by a few frames of each, and answers about them; a video is seen once for all its questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from openblip.blip import Blip
from openblip.errors import OpenBlipError
from openblip.evaluation.protocols.base import Items
from openblip.evaluation.protocols.videos import VideoAnswerPreset, VideoRetrievalPreset
from openblip.evaluation.tasks import answers, retrieval
from openblip.evaluation.tasks.base import Evaluated, Notify, Predict
from openblip.preprocess.video import Video

MEDIAN = "vid_mdR"  # a rank, which is no share


def retrieved(
    blip: Blip, items: Items, preset: VideoRetrievalPreset, *, key: Mapping[str, Any], out: Path | None, notify: Notify
) -> Evaluated:
    """As of images, under the names that the authors' code gives the numbers: ``vid`` of videos for texts."""
    found = retrieval.evaluated(
        blip, items, preset, key=key, out=out, notify=notify, seen=lambda item: Video(item.image, preset.frames)
    )
    return replace(found, metrics=_renamed(found.metrics))


def _renamed(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    names = {name: name.replace("img_", "vid_") for name in metrics} | {"img_median_rank": MEDIAN}
    return {names[name]: value for name, value in metrics.items()}


def predictor(blip: Blip, preset: VideoAnswerPreset, data: Path) -> Predict:
    """As about images; questions about one video that follow each other are asked together."""
    options = answers.options(preset, data)

    def predict(items: Items) -> Iterator[Any]:
        for path, asked in groupby(items, key=lambda item: item.image):
            questions = [answers.worded(item, preset) for item in asked]
            found = blip.ask(Video(path, preset.frames), questions, on_error="return", **options)
            if isinstance(found, OpenBlipError):
                yield from [found] * len(questions)
            else:
                yield from (one.text for one in found)

    return predict
