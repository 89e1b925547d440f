"""COCO captions, Karpathy's split. Formats: the authors' ``coco_karpathy_*.json`` and their ``_gt.json`` (COCO's)."""

from __future__ import annotations

from pathlib import Path

from openblip.errors import EvaluationError
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


def read(folder: Path, preset: Preset) -> Items:
    pictures, references = (folder / name for name in preset.files)
    wanted = files.caption_references(references)
    places: dict[int, str] = {}
    for where, entry in files.read(pictures):
        (name,) = fields(where, entry, image=str)
        key = image_id(where, name)
        if key in places:
            raise EvaluationError(f"{where}: the picture of image_id {key} is there a second time")
        places[key] = name
    lacking = [key for key in wanted if key not in places]
    if lacking and not (isinstance(preset, CaptionPreset) and preset.ids == "predicted"):
        raise EvaluationError(f"{pictures} has no picture for image_id {lacking[0]} of {references.name}")
    return [
        Item(key, image_file(folder, places[key], "images"), tuple(texts))
        for key, texts in wanted.items()
        if key in places
    ]


def image_id(where: str, name: str) -> int:
    """COCO's number: what follows the last underscore of the file's name."""
    digits = Path(name).stem.rsplit("_", 1)[-1]
    if not digits.isdecimal():
        raise EvaluationError(f"{where}: {name!r} ends in no image number")
    return int(digits)


def _files(split: str) -> tuple[str, ...]:
    return f"coco_karpathy_{split}.json", f"coco_karpathy_{split}_gt.json"


PROTOCOL = Protocol(
    name="coco-caption",
    title="COCO captions",
    task="caption",
    published_at=(
        "https://storage.googleapis.com/sfr-vision-language-research/datasets/ (annotations) and cocodataset.org "
        "(train2014, val2014)"
    ),
    presets={
        "paper": CaptionPreset(
            split="Karpathy test",
            files=_files("test"),
            count=5000,
            prompt=PROMPT,
            published=(
                Score("paper, table 7", ("model_base_caption_capfilt_large",), {"Bleu_4": 39.7, "CIDEr": 133.3}),
                Score("paper, table 7", ("model_large_caption",), {"Bleu_4": 40.4, "CIDEr": 136.7}),
            ),
        ),
        "lavis": CaptionPreset(
            split="Karpathy test",
            files=_files("test"),
            count=5000,
            prompt=PROMPT,
            repetition_penalty=1.15,
            note=(
                "its published Bleu_4 39.9, CIDEr 133.5 and SPICE 23.7 were made without the repetition penalty that "
                "LAVIS has today"
            ),
        ),
        "mmpretrain": CaptionPreset(
            split="Karpathy val",
            files=_files("val"),
            count=5000,
            prompt=PROMPT,
            min_length=2,
            ids="predicted",
            published=(Score("mmpretrain", ("blip-base_3rdparty_caption",), {"Bleu_4": 40.12, "CIDEr": 132.82}),),
        ),
    },
    read=read,
    result="captions_karpathy_openblip_results.json",
    server=captions_for_server,
)
