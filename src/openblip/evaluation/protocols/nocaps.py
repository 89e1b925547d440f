"""NoCaps, val: COCO's format with the domain of each image (`nocaps_val_4500_captions.json` of nocaps.org)."""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import Item, Items, Preset, Protocol, PublishedScore, ServerFile, Split
from openblip.evaluation.protocols.builders import caption_presets
from openblip.evaluation.protocols.readers import find_image, get_fields

VAL = Split("val", ("nocaps_val_4500_captions.json",), 4500)


def read(folder: Path, preset: Preset) -> Items:
    """Read the images with their captions and domains."""
    path = folder / preset.split.files[0]
    images = files.index_coco_images(path, files.read_json(path))
    items = []
    for image_id, texts in files.read_caption_references(path).items():
        entry = images[image_id]
        (name,) = get_fields(f"{path}: image {image_id!r}", entry, file_name=str)
        domain = str(entry.get("domain", "")).removesuffix("-domain")
        items.append(Item(image_id, find_image(folder, name, "val", "images"), tuple(texts), domain=domain))
    return items


def _values_by_domain(metric: str, *values: float) -> dict[str, float]:
    """Return a published metric in, near and out of domain, and of all images."""
    return dict(zip((f"in {metric}", f"near {metric}", f"out {metric}", metric), values, strict=True))


PROTOCOL = Protocol(
    name="nocaps",
    title="NoCaps",
    published_at="nocaps.org",
    presets=caption_presets(
        VAL,
        {
            "paper": (
                PublishedScore(
                    "paper, table 7",
                    ("model_base_caption_capfilt_large",),
                    _values_by_domain("CIDEr", 111.8, 108.6, 111.5, 109.6)
                    | _values_by_domain("SPICE", 14.9, 14.8, 14.2, 14.7),
                ),
                PublishedScore(
                    "paper, table 7",
                    ("model_large_caption",),
                    _values_by_domain("CIDEr", 114.9, 112.1, 115.3, 113.2)
                    | _values_by_domain("SPICE", 15.2, 14.9, 14.4, 14.8),
                ),
            ),
            "mmpretrain": (
                PublishedScore("mmpretrain", ("blip-base_3rdparty_caption",), {"CIDEr": 109.12, "SPICE": 14.69}),
            ),
        },
        repetition_penalty=1.1,
        lavis_note=(
            "its published CIDEr 109.1, SPICE 14.7 and Bleu_4 31.9 were made without the repetition penalty that "
            "LAVIS has today"
        ),
    ),
    reader=read,
    server_file=ServerFile("val.json", server.build_captions),
)
