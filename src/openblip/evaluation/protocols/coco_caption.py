"""COCO captions, Karpathy's split: the authors' `coco_karpathy_*.json`, and `*_gt.json` in COCO's format."""

from __future__ import annotations

from pathlib import Path

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import (
    CaptionPreset,
    Item,
    Items,
    Preset,
    Protocol,
    PublishedScore,
    ServerFile,
    Split,
)
from openblip.evaluation.protocols.builders import caption_presets
from openblip.evaluation.protocols.readers import find_image, get_fields

TEST = Split("Karpathy test", ("coco_karpathy_test.json", "coco_karpathy_test_gt.json"), 5000)
VAL = Split("Karpathy val", ("coco_karpathy_val.json", "coco_karpathy_val_gt.json"), 5000)


def read(folder: Path, preset: Preset) -> Items:
    """Read the images of the references, in the order of the references."""
    images_path, references_path = (folder / name for name in preset.split.files)
    references = files.read_caption_references(references_path)
    names: dict[ItemId, str] = {}
    for location, entry in files.read_entries(images_path):
        (name,) = get_fields(location, entry, image=str)
        image_id = parse_image_id(location, name)
        if image_id in names:
            raise EvaluationError(f"{location}: image_id {image_id} occurs a second time")
        names[image_id] = name
    missing = [image_id for image_id in references if image_id not in names]
    if missing and not (isinstance(preset, CaptionPreset) and preset.scored_images == "listed"):
        raise EvaluationError(f"{images_path} has no image for image_id {missing[0]} of {references_path.name}")
    return [
        Item(image_id, find_image(folder, names[image_id], "images"), tuple(texts))
        for image_id, texts in references.items()
        if image_id in names
    ]


def parse_image_id(location: str, name: str) -> int:
    """Return COCO's number of an image: the digits after the last underscore of the file's name."""
    digits = Path(name).stem.rsplit("_", 1)[-1]
    if not digits.isdecimal():
        raise EvaluationError(f"{location}: the name of an image must end in its number, got {name!r}")
    return int(digits)


PROTOCOL = Protocol(
    name="coco-caption",
    title="COCO captions",
    published_at=(
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (annotations) and cocodataset.org "
        "(train2014, val2014)"
    ),
    presets=caption_presets(
        TEST,
        {
            "paper": (
                PublishedScore(
                    "paper, table 7", ("model_base_caption_capfilt_large",), {"Bleu_4": 39.7, "CIDEr": 133.3}
                ),
                PublishedScore("paper, table 7", ("model_large_caption",), {"Bleu_4": 40.4, "CIDEr": 136.7}),
            ),
            "mmpretrain": (
                PublishedScore("mmpretrain", ("blip-base_3rdparty_caption",), {"Bleu_4": 40.12, "CIDEr": 132.82}),
            ),
        },
        mmpretrain_split=VAL,
        lavis_note=(
            "its published Bleu_4 39.9, CIDEr 133.5 and SPICE 23.7 were made without the repetition penalty that "
            "LAVIS has today"
        ),
    ),
    reader=read,
    server_file=ServerFile("captions_karpathy_openblip_results.json", server.build_captions),
)
