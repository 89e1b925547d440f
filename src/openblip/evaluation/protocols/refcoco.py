"""RefCOCO, UNC's split: one box per expression, testA (people) and testB (all else).

Files of github.com/lichengunc/refer: ``refs(unc).p`` (which expressions name which object) and ``instances.json``
(COCO's, with the boxes). The first is a pickle; only plain data is read from it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import (
    GroundPreset,
    Item,
    Items,
    Preset,
    PresetName,
    Protocol,
    Score,
    image_file,
)
from openblip.evaluation.protocols.readers import fields

FILES = ("refs(unc).p", "instances.json")


def read(folder: Path, preset: Preset) -> Items:
    boxes = _boxes(folder / FILES[1])
    items: Items = []
    for n, ref in enumerate(_refs(folder / FILES[0]), 1):
        where = f"{folder / FILES[0]}: entry {n}"
        try:
            if ref["split"] != preset.split:
                continue
            name, box = f"COCO_train2014_{ref['image_id']:012d}.jpg", boxes[ref["ann_id"]]
            sentences = list(ref["sentences"])
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{where} lacks or has no object for {error}") from error
        picture = image_file(folder, name, "train2014", "images")
        for sentence in sentences:
            key, text = fields(where, sentence, sent_id=int, raw=str)
            items.append(Item(key, picture, (text,), box=box))
    return items


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data")


def _refs(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            found = _PlainData(file, encoding="latin-1").load()
    except Exception as error:  # a damaged pickle raises nearly anything, MemoryError and AttributeError among it
        raise EvaluationError(
            f"{path} cannot be read, is damaged or was cut off: {str(error) or type(error).__name__}"
        ) from error
    if not isinstance(found, list):
        raise EvaluationError(f"{path} is not a list of expressions")
    return found


def _boxes(path: Path) -> dict[int, tuple[float, float, float, float]]:
    """Left, top, right and bottom by the number of the object; the file has left, top, width and height."""
    return files.unique((where, *_object(where, entry)) for where, entry in files.read(path, ("annotations",)))


def _object(where: str, entry: dict[str, Any]) -> tuple[int, tuple[float, float, float, float]]:
    try:
        x, y, width, height = map(float, entry["bbox"])
        return int(entry["id"]), (x, y, x + width, y + height)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EvaluationError(f"{where} lacks 'id' or 'bbox' of four numbers") from error


def _protocol(split: str, count: int, accuracy: float) -> Protocol:
    def preset(*published: Score) -> GroundPreset:
        note = "" if published else "only mmpretrain has this row"
        return GroundPreset(split=split, files=FILES, count=count, published=published, note=note)

    ours = Score("mmpretrain", ("blip-base_8xb16_refcoco",), {"accuracy": accuracy})
    presets: dict[PresetName, Preset] = {"paper": preset(), "lavis": preset(), "mmpretrain": preset(ours)}
    return Protocol(
        name=f"refcoco-{split.lower()}",
        title=f"RefCOCO {split}",
        task="grounding",
        published_at="github.com/lichengunc/refer (annotations) and cocodataset.org (train2014)",
        presets=presets,
        read=read,
    )


# Counts: the page of FlagEval on RefCOCO, train 120624, validation 10834, testA 5657, testB 5095 expressions; the
# 1,975 and 1,810 of TensorFlow's catalogue and of the hub's cards are objects, which have several expressions each.
TEST_A = _protocol("testA", 5657, 86.14)
TEST_B = _protocol("testB", 5095, 77.33)
