"""NoCaps, val: COCO's form with each image's domain (``nocaps_val_4500_captions.json`` of nocaps.org)."""

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
from openblip.evaluation.protocols.readers import fields

FILES = ("nocaps_val_4500_captions.json",)


def read(folder: Path, preset: Preset) -> Items:
    path = folder / preset.files[0]
    images = files.coco_images(path, files.load(path))
    wanted = files.caption_references(path)
    items = []
    for key, texts in wanted.items():
        image = images[key]
        (name,) = fields(f"{path}: image {key!r}", image, file_name=str)
        group = str(image.get("domain", "")).removesuffix("-domain")
        items.append(Item(key, image_file(folder, name, "val", "images"), tuple(texts), group=group))
    return items


def _by_domain(metric: str, *values: float) -> dict[str, float]:
    """A published metric in, near and out of domain, and of all images."""
    return dict(zip((f"in {metric}", f"near {metric}", f"out {metric}", metric), values, strict=True))


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
            prompt=PROMPT,
            repetition_penalty=1.1,
            published=(
                Score(
                    "paper, table 7",
                    ("model_base_caption_capfilt_large",),
                    {
                        **_by_domain("CIDEr", 111.8, 108.6, 111.5, 109.6),
                        **_by_domain("SPICE", 14.9, 14.8, 14.2, 14.7),
                    },
                ),
                Score(
                    "paper, table 7",
                    ("model_large_caption",),
                    {
                        **_by_domain("CIDEr", 114.9, 112.1, 115.3, 113.2),
                        **_by_domain("SPICE", 15.2, 14.9, 14.4, 14.8),
                    },
                ),
            ),
        ),
        "lavis": CaptionPreset(
            split="val",
            files=FILES,
            count=4500,
            prompt=PROMPT,
            repetition_penalty=1.15,
            note=(
                "its published CIDEr 109.1, SPICE 14.7 and Bleu_4 31.9 were made without the repetition penalty that "
                "LAVIS has today"
            ),
        ),
        "mmpretrain": CaptionPreset(
            split="val",
            files=FILES,
            count=4500,
            prompt=PROMPT,
            min_length=2,
            ids="predicted",
            published=(Score("mmpretrain", ("blip-base_3rdparty_caption",), {"CIDEr": 109.12, "SPICE": 14.69}),),
        ),
    },
    read=read,
    result="val.json",
    server=captions_for_server,
)
