"""NoCaps, val: COCO's form with each image's domain (``nocaps_val_4500_captions.json`` of nocaps.org)."""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols.base import (
    CaptionPreset,
    Item,
    Items,
    Preset,
    Protocol,
    Score,
    captions_for_server,
    image_file,
)
from openblip.evaluation.protocols.readers import fields

FILES = ("nocaps_val_4500_captions.json",)


def read(folder: Path, preset: Preset) -> Items:
    path = folder / preset.files[0]
    wanted = files.caption_references(path)
    images = {image["id"]: image for image in files.load(path)["images"]}
    items = []
    for key, texts in wanted.items():
        image = images[key]
        (name,) = fields(f"{path}: image {key!r}", image, file_name=str)
        group = str(image.get("domain", "")).removesuffix("-domain")
        items.append(Item(key, image_file(folder, name, "val", "images"), tuple(texts), group=group))
    return items


PROTOCOL = Protocol(
    name="nocaps",
    title="NoCaps",
    task="caption",
    published_at="nocaps.org",
    presets={
        "paper": CaptionPreset(
            split="val",
            files=FILES,
            count=4500,
            repetition_penalty=1.1,
            published=(
                Score(
                    "paper, table 7",
                    ("model_base_caption_capfilt_large",),
                    {"in CIDEr": 111.8, "near CIDEr": 108.6, "out CIDEr": 111.5, "CIDEr": 109.6, "SPICE": 14.7},
                ),
                Score(
                    "paper, table 7",
                    ("model_large_caption",),
                    {"in CIDEr": 114.9, "near CIDEr": 112.1, "out CIDEr": 115.3, "CIDEr": 113.2, "SPICE": 14.8},
                ),
            ),
        ),
        "lavis": CaptionPreset(
            split="val",
            files=FILES,
            count=4500,
            repetition_penalty=1.15,
            published=(Score("LAVIS", ("blip_coco_caption_base",), {"CIDEr": 109.1, "SPICE": 14.7, "Bleu_4": 31.9}),),
        ),
        "mmpretrain": CaptionPreset(
            split="val",
            files=FILES,
            count=4500,
            min_length=2,
            published=(Score("mmpretrain", ("blip-base_3rdparty_caption",), {"CIDEr": 109.12, "SPICE": 14.69}),),
        ),
    },
    read=read,
    result="val.json",
    server=captions_for_server,
)
