"""VisDial v1.0, val, discriminative: rank the 100 candidates of each of ten rounds (visualdialog.org/data).

The paper (section 5.5, table 9) publishes scores, but neither weights nor code. How a dialog becomes a text,
and how a dialog that is too long is cut, is our choice.
"""

from __future__ import annotations

from pathlib import Path

from openblip.data.visdial import read_dialogs
from openblip.errors import EvaluationError, InputError
from openblip.evaluation import files
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import DialogItem, Items, Preset, Protocol, ServerFile, Split, VisdialPreset
from openblip.evaluation.protocols.readers import find_image, get_fields

DIALOGS, RELEVANCE = "visdial_1.0_val.json", "visdial_1.0_val_dense_annotations.json"
IMAGES = "VisualDialog_val2018"
NOTE = (
    "no published checkpoint; the paper's (table 9) had MRR 69.41, R@1 56.44, R@5 85.90, R@10 93.30 and mean rank 3.20"
)


def read(folder: Path, preset: Preset) -> Items:
    """Read the rounds of all dialogs, with the relevance of the candidates where it was annotated."""
    relevance = _read_relevance(folder / RELEVANCE)
    items: Items = []
    path = folder / DIALOGS
    try:
        dialogs = list(read_dialogs(files.read_json(path)))
    except InputError as error:
        raise EvaluationError(f"{path}: {error}") from error
    for number, dialog in enumerate(dialogs, 1):
        if isinstance(dialog, InputError):
            raise EvaluationError(f"{path}: dialog {number}: {dialog}")
        image = find_image(folder, f"{IMAGES}_{dialog.image_id:012d}.jpg", IMAGES, "images")
        history = tuple((turn.question, turn.answer) for turn in dialog.rounds)
        for i, turn in enumerate(dialog.rounds):
            key = f"{dialog.image_id}-{i + 1}"
            items.append(
                DialogItem(
                    key,
                    image,
                    (dialog.caption,),
                    turn.question,
                    turn.options,
                    history=history[:i],
                    answer_index=turn.right,
                    relevance=relevance.pop(key, ()),
                )
            )
    if len({item.id for item in items}) < len(items):
        raise EvaluationError(f"{path} has two dialogs about one image_id")
    if relevance:
        raise EvaluationError(f"{folder / RELEVANCE} has round {next(iter(relevance))}, which is not in {DIALOGS}")
    return items


def _read_relevance(path: Path) -> dict[str, tuple[float, ...]]:
    """Read entries {"image_id", "round_id", "gt_relevance"}: the relevance of each candidate, by image and round."""
    relevance: dict[str, tuple[float, ...]] = {}
    for location, entry in files.read_entries(path):
        image_id, round_id, values = get_fields(location, entry, image_id=int, round_id=int, gt_relevance=list)
        if not all(isinstance(value, int | float) for value in values):
            raise EvaluationError(f"{location}: 'gt_relevance' must be a list of numbers")
        key = f"{image_id}-{round_id}"
        if key in relevance:
            raise EvaluationError(f"{location}: round {round_id} of image_id {image_id} occurs a second time")
        relevance[key] = tuple(map(float, values))
    return relevance


_PRESET = VisdialPreset(split=Split("val", (DIALOGS, RELEVANCE), 20_640), note=NOTE)

PROTOCOL = Protocol(
    name="visdial",
    title="VisDial v1.0",
    published_at="visualdialog.org/data (dialogs, dense annotations and VisualDialog_val2018)",
    presets={"paper": _PRESET, "lavis": _PRESET, "mmpretrain": _PRESET},
    reader=read,
    server_file=ServerFile("visdial_ranks.json", server.build_dialog_ranks),
)
