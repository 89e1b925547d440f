"""MSR-VTT text-to-video retrieval, the 1k test videos, zero-shot: lines {"clip_name", "caption"} (msrvtt_test.jsonl).

As the authors' `eval_retrieval_video.py`: one caption for each of 1,000 videos of 8 frames, both directions. The paper
prints the direction from texts to videos.
"""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items, Preset, Protocol, PublishedScore, RetrievalPreset, Split
from openblip.evaluation.protocols.builders import paper_only_presets
from openblip.evaluation.protocols.readers import add_unique, find_image, get_fields


def read(folder: Path, preset: Preset) -> Items:
    """Read the videos with their captions."""
    items: Items = []
    names: set[str] = set()
    for location, entry in files.read_entries(folder / preset.split.files[0]):
        name, text = get_fields(location, entry, clip_name=str, caption=str)
        add_unique(location, name, names)
        items.append(Item(len(items), find_image(folder, f"{name}.mp4", "videos", "TestVideo"), (text,)))
    return items


PROTOCOL = Protocol(
    name="msrvtt-retrieval",
    title="MSR-VTT text-to-video retrieval",
    published_at=(
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/msrvtt_test.jsonl and "
        "ms-multimedia-challenge.com/2017/dataset (videos, into videos/)"
    ),
    presets=paper_only_presets(
        RetrievalPreset(
            split=Split("1k test", ("msrvtt_test.jsonl",), 1000), shortlist=128, max_words=40, num_frames=8
        ),
        PublishedScore(
            "paper, table 10",
            ("model_base_retrieval_coco",),
            {"vid_r1": 43.3, "vid_r5": 65.6, "vid_r10": 74.7, "vid_mdR": 2},
        ),
    ),
    reader=read,
)
