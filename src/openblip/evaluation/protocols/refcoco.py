"""RefCOCO, UNC's split: one box per expression, testA (people) and testB (other objects).

Files of github.com/lichengunc/refer: `refs(unc).p` (the expressions of each object) and `instances.json` (COCO's
boxes). The first is a pickle; only plain data is loaded from it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import (
    GroundingPreset,
    Item,
    Items,
    Preset,
    Protocol,
    PublishedScore,
    Split,
)
from openblip.evaluation.protocols.readers import find_image, get_fields

FILES = ("refs(unc).p", "instances.json")
Edges = tuple[float, float, float, float]  # left, top, right, bottom


def read(folder: Path, preset: Preset) -> Items:
    """Read the expressions of a split with their boxes."""
    entries = files.read_entries(folder / FILES[1], ("annotations",))
    boxes = files.index_unique((location, *_parse_box(location, entry)) for location, entry in entries)
    items: Items = []
    for number, ref in enumerate(_read_refs(folder / FILES[0]), 1):
        location = f"{folder / FILES[0]}: entry {number}"
        try:
            if ref["split"] != preset.split.name:
                continue
            name, box = f"COCO_train2014_{ref['image_id']:012d}.jpg", boxes[ref["ann_id"]]
            sentences = list(ref["sentences"])
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{location} lacks or has no object for {error}") from error
        image = find_image(folder, name, "train2014", "images")
        for sentence in sentences:
            sentence_id, text = get_fields(location, sentence, sent_id=int, raw=str)
            items.append(Item(sentence_id, image, (text,), box=box))
    return items


class _PlainDataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it must contain plain data only, but refers to {module}.{name}")


def _read_refs(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            refs = _PlainDataUnpickler(file, encoding="latin-1").load()
    except Exception as error:  # a damaged pickle raises almost anything, including MemoryError and AttributeError
        raise EvaluationError(
            f"{path} cannot be read, is damaged or was cut off: {str(error) or type(error).__name__}"
        ) from error
    if not isinstance(refs, list):
        raise EvaluationError(f"{path} must be a list of expressions")
    return refs


def _parse_box(location: str, entry: dict[str, Any]) -> tuple[int, Edges]:
    """Return the id and the edges of an object; the file has left, top, width and height."""
    try:
        x, y, width, height = map(float, entry["bbox"])
        return int(entry["id"]), (x, y, x + width, y + height)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EvaluationError(f"{location} lacks 'id' or 'bbox' of four numbers") from error


def _build_protocol(split: Split, accuracy: float) -> Protocol:
    score = PublishedScore("mmpretrain", ("blip-base_8xb16_refcoco",), {"accuracy": accuracy})
    unpublished = GroundingPreset(split=split, note="only mmpretrain has this row")
    return Protocol(
        name=f"refcoco-{split.name.lower()}",
        title=f"RefCOCO {split.name}",
        published_at="github.com/lichengunc/refer (annotations) and cocodataset.org (train2014)",
        presets={
            "paper": unpublished,
            "lavis": unpublished,
            "mmpretrain": GroundingPreset(split=split, published=(score,)),
        },
        reader=read,
    )


# Counts: FlagEval's page on RefCOCO (train 120624, validation 10834, testA 5657, testB 5095 expressions). The 1,975 and
# 1,810 of TensorFlow's catalog and of the hub's cards are objects, which have several expressions each.
TEST_A = _build_protocol(Split("testA", FILES, 5657), 86.14)
TEST_B = _build_protocol(Split("testB", FILES, 5095), 77.33)
