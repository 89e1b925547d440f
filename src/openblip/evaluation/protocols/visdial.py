"""VisDial v1.0, val, discriminative: the 100 answers offered in each of ten rounds are ranked (visualdialog.org/data).

The paper (section 5.5, table 9) published figures, but neither a model nor code: how a dialog becomes a text, and what
is cut off one that is too long, is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.data.visdial import read_dialogs
from openblip.errors import EvaluationError, InputError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items, Preset, Protocol, image_file
from openblip.evaluation.protocols.readers import fields

DIALOGS, RELEVANCE = "visdial_1.0_val.json", "visdial_1.0_val_dense_annotations.json"
IMAGES = "VisualDialog_val2018"
NOTE = (
    "no published checkpoint; the paper's (table 9) had MRR 69.41, R@1 56.44, R@5 85.90, R@10 93.30 and mean rank 3.20"
)


@dataclass(frozen=True, kw_only=True)
class DialogPreset(Preset):
    """Dialogs of at most ``max_tokens``, the latest of them; the caption is read beside the picture."""

    max_tokens: int = 256


@dataclass(frozen=True)
class DialogItem(Item):
    """A round: the caption is in ``texts`` and what is offered in ``answers``, of which number ``right`` is right.

    ``history`` holds the questions and answers before it, ``relevant`` how people judged each answer, if they did.
    """

    history: tuple[tuple[str, str], ...] = ()
    right: int = 0
    relevant: tuple[float, ...] = ()


def read(folder: Path, preset: Preset) -> Items:
    judged = _relevance(folder / RELEVANCE)
    items: Items = []
    path = folder / DIALOGS
    try:
        dialogs = list(read_dialogs(files.load(path)))
    except InputError as error:
        raise EvaluationError(f"{path}: {error}") from error
    for number, dialog in enumerate(dialogs, 1):
        if isinstance(dialog, InputError):
            raise EvaluationError(f"{path}: dialog {number}: {dialog}")
        picture = image_file(folder, f"{IMAGES}_{dialog.image_id:012d}.jpg", IMAGES, "images")
        history = tuple((one.question, one.answer) for one in dialog.rounds)
        for n, one in enumerate(dialog.rounds):
            key = f"{dialog.image_id}-{n + 1}"
            relevant = judged.pop(key, ())
            items.append(
                DialogItem(
                    key, picture, (dialog.caption,), one.question, one.options, history=history[:n], right=one.right,
                    relevant=relevant,
                )
            )  # fmt: skip
    if len({item.id for item in items}) < len(items):
        raise EvaluationError(f"{path} has two dialogs about one image_id")
    if judged:
        raise EvaluationError(f"{folder / RELEVANCE} judges round {next(iter(judged))}, which is not in {DIALOGS}")
    return items


def _relevance(path: Path) -> dict[str, tuple[float, ...]]:
    """What people found of each answer, by picture and round: entries {"image_id", "round_id", "gt_relevance"}."""
    found: dict[str, tuple[float, ...]] = {}
    for where, entry in files.read(path):
        image, turn, given = fields(where, entry, image_id=int, round_id=int, gt_relevance=list)
        if not all(isinstance(value, int | float) for value in given):
            raise EvaluationError(f"{where}: 'gt_relevance' is not a list of numbers")
        if f"{image}-{turn}" in found:
            raise EvaluationError(f"{where}: round {turn} of image_id {image} is there a second time")
        found[f"{image}-{turn}"] = tuple(map(float, given))
    return found


def for_server(predictions: Mapping[Any, str]) -> list[dict[str, Any]]:
    """The list that the challenge's server takes: the ranks of a round's answers, in the order they were offered."""
    found = []
    for key, ranks in predictions.items():
        image, turn = map(int, str(key).split("-"))
        found.append({"image_id": image, "round_id": turn, "ranks": json.loads(ranks)})
    return found


_PRESET = DialogPreset(split="val", files=(DIALOGS, RELEVANCE), count=20_640, note=NOTE)

PROTOCOL = Protocol(
    name="visdial",
    title="VisDial v1.0",
    task="retrieval",
    published_at="visualdialog.org/data (dialogs, dense annotations and VisualDialog_val2018)",
    presets={"paper": _PRESET, "lavis": _PRESET, "mmpretrain": _PRESET},
    read=read,
    result="visdial_ranks.json",
    server=for_server,
)
