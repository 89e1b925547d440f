"""Flickr30k captions, Karpathy's test split, zero-shot (``dataset_flickr30k.json``)."""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols.base import (
    PROMPT,
    CaptionPreset,
    Item,
    Items,
    Preset,
    Protocol,
    Score,
    captions_for_server,
    image_file,
)
from openblip.evaluation.protocols.readers import fields, some_texts

FILES = ("dataset_flickr30k.json",)


def read(folder: Path, preset: Preset) -> Items:
    path = folder / preset.files[0]
    items = []
    for where, entry in files.read(path, ("images",)):
        if entry.get("split") != "test":
            continue
        key, name, sentences = fields(where, entry, imgid=int, filename=str, sentences=list)
        texts = some_texts(where, "sentences", [fields(where, sentence, raw=str)[0] for sentence in sentences])
        items.append(Item(key, image_file(folder, name, "flickr30k-images"), texts))
    return items


PROTOCOL = Protocol(
    name="flickr30k-caption",
    title="Flickr30k captions",
    task="caption",
    published_at="cs.stanford.edu/people/karpathy/deepimagesent (dataset_flickr30k.json) and shannon.cs.illinois.edu",
    presets={
        "paper": CaptionPreset(split="Karpathy test", files=FILES, count=1000, prompt=PROMPT),
        "lavis": CaptionPreset(split="Karpathy test", files=FILES, count=1000, prompt=PROMPT, repetition_penalty=1.15),
        "mmpretrain": CaptionPreset(
            split="Karpathy test",
            files=FILES,
            count=1000,
            prompt=PROMPT,
            min_length=2,
            ids="predicted",
            published=(Score("mmpretrain", ("blip-base_3rdparty_caption",), {"CIDEr": 68.89, "SPICE": 15.58}),),
        ),
    },
    read=read,
    result="captions_flickr30k_openblip_results.json",
    server=captions_for_server,
)
