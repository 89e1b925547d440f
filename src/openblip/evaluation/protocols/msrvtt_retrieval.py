"""Text-to-video retrieval on MSR-VTT's 1k test videos, zero-shot: {"clip_name", "caption"} a line (msrvtt_test.jsonl).

As the authors' ``eval_retrieval_video.py``: a caption each for 1,000 videos of 8 frames; both directions, of which the
paper prints the one from texts to videos.
"""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items, Preset, Protocol, Score, image_file
from openblip.evaluation.protocols.readers import fields, once
from openblip.evaluation.protocols.videos import ONLY, VideoRetrievalPreset

FILES = ("msrvtt_test.jsonl",)


def read(folder: Path, preset: Preset) -> Items:
    items: Items = []
    names: set[str] = set()
    for where, entry in files.read(folder / preset.files[0]):
        name, text = fields(where, entry, clip_name=str, caption=str)
        once(where, name, names)
        items.append(Item(len(items), image_file(folder, f"{name}.mp4", "videos", "TestVideo"), (text,)))
    return items


def _preset(*published: Score) -> Preset:
    return VideoRetrievalPreset(
        split="1k test", files=FILES, count=1000, k=128, max_words=40, frames=8, published=published,
        note="" if published else ONLY,
    )  # fmt: skip


_PAPER = Score(
    "paper, table 10",
    ("model_base_retrieval_coco",),
    {"vid_r1": 43.3, "vid_r5": 65.6, "vid_r10": 74.7, "vid_mdR": 2},
)

PROTOCOL = Protocol(
    name="msrvtt-retrieval",
    title="MSR-VTT text-to-video retrieval",
    task="retrieval",
    published_at=(
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/msrvtt_test.jsonl and "
        "ms-multimedia-challenge.com/2017/dataset (videos, into videos/)"
    ),
    presets={"paper": _preset(_PAPER), "lavis": _preset(), "mmpretrain": _preset()},
    read=read,
)
