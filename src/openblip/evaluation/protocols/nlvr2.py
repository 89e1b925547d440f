"""NLVR2: is a statement about two images true? (`dev.json` and `test1.json` of lil-lab/nlvr, JSON Lines.)"""

from __future__ import annotations

from pathlib import Path

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import (
    Item,
    Items,
    NlvrPreset,
    Preset,
    Protocol,
    PublishedScore,
    ServerFile,
    Split,
)
from openblip.evaluation.protocols.readers import find_image, get_fields

TEST = Split("test-P", ("test1.json",), 6967)
DEV = Split("dev", ("dev.json",), 6982)


def read(folder: Path, preset: Preset) -> Items:
    """Read the statements with their pairs of images."""
    items = []
    for location, entry in files.read_json_lines(folder / preset.split.files[0]):
        key, statement, label = get_fields(location, entry, identifier=str, sentence=str, label=str)
        if label not in ("True", "False"):
            raise EvaluationError(f"{location}: the label must be 'True' or 'False', got {label!r}")
        if len(key.split("-")) != 4:
            raise EvaluationError(
                f"{location}: the identifier must be split, set, pair and sentence (dev-850-0-2), got {key!r}"
            )
        split = key.split("-", 1)[0]
        pair = key.rsplit("-", 1)[0]  # dev-850-0-2 is sentence 2 of the pair dev-850-0
        image, second_image = (find_image(folder, f"{pair}-img{side}.png", split, "images") for side in (0, 1))
        items.append(Item(key, image, (statement,), second_image=second_image, answers=(label,)))
    return items


PROTOCOL = Protocol(
    name="nlvr2",
    title="NLVR2",
    published_at="github.com/lil-lab/nlvr (nlvr2/data; images on request)",
    presets={
        "paper": NlvrPreset(
            split=TEST, published=(PublishedScore("paper, 129M", ("model_base_nlvr",), {"accuracy": 83.08}),)
        ),
        "lavis": NlvrPreset(
            split=TEST,
            max_words=50,  # the default of its text processor, which its configuration does not change
            published=(PublishedScore("LAVIS", ("model_base_nlvr",), {"accuracy": 83.25}),),
        ),
        "mmpretrain": NlvrPreset(
            split=DEV,
            first_token="cls",
            clean=False,
            published=(PublishedScore("mmpretrain", ("blip-base_3rdparty_nlvr",), {"accuracy": 82.33}),),
        ),
    },
    reader=read,
    server_file=ServerFile("nlvr2_result.csv", server.build_nlvr_lines),
)
