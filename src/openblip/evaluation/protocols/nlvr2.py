"""NLVR2: is a statement about two pictures true? (``dev.json`` and ``test1.json`` of lil-lab/nlvr, JSON lines.)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import ComparePreset, Item, Items, Preset, Protocol, Score, image_file
from openblip.evaluation.protocols.readers import fields


def read(folder: Path, preset: Preset) -> Items:
    items = []
    for where, entry in files.read_lines(folder / preset.files[0]):
        key, statement, label = fields(where, entry, identifier=str, sentence=str, label=str)
        if label not in ("True", "False"):
            raise EvaluationError(f"{where}: the label is 'True' or 'False', not {label!r}")
        if len(key.split("-")) != 4:
            raise EvaluationError(
                f"{where}: the identifier is split, set, pair and sentence (dev-850-0-2), not {key!r}"
            )
        left, right = pictures(key)
        split = key.split("-", 1)[0]
        places = (split, "images")
        pair = image_file(folder, left, *places), image_file(folder, right, *places)
        items.append(Item(key, pair[0], (statement,), second=pair[1], answers=(label,)))
    return items


def pictures(key: str) -> tuple[str, str]:
    """File names of an identifier's pictures: "dev-850-0-2" is the third sentence of pair dev-850-0."""
    pair = key.rsplit("-", 1)[0]
    return f"{pair}-img0.png", f"{pair}-img1.png"


def consistency(right: Mapping[str, bool]) -> float:
    """Share of sentences whose pairs were all judged right; one sentence's identifiers differ in the pair alone."""
    by_sentence: dict[tuple[str, str, str], bool] = {}
    for key, one in right.items():
        split, number, _, sentence = key.split("-")
        place = (split, number, sentence)
        by_sentence[place] = by_sentence.get(place, True) and one
    return sum(by_sentence.values()) / len(by_sentence)


def for_server(predictions: Mapping[Any, str]) -> str:
    """Lines "identifier,True" as the authors' evaluation script takes them."""
    return "".join(f"{key},{text}\n" for key, text in predictions.items())


PROTOCOL = Protocol(
    name="nlvr2",
    title="NLVR2",
    task="nlvr",
    published_at="github.com/lil-lab/nlvr (nlvr2/data; pictures on request)",
    presets={
        "paper": ComparePreset(
            split="test-P",
            files=("test1.json",),
            count=6967,
            published=(Score("paper, 129M", ("model_base_nlvr",), {"accuracy": 83.08}),),
        ),
        "lavis": ComparePreset(
            split="test-P",
            files=("test1.json",),
            count=6967,
            max_words=50,  # the default of its text processor, which its configuration keeps
            published=(Score("LAVIS", ("model_base_nlvr",), {"accuracy": 83.25}),),
        ),
        "mmpretrain": ComparePreset(
            split="dev",
            files=("dev.json",),
            count=6982,
            first_token="cls",
            clean=False,
            published=(Score("mmpretrain", ("blip-base_3rdparty_nlvr",), {"accuracy": 82.33}),),
        ),
    },
    read=read,
    result="nlvr2_result.csv",
    server=for_server,
)
