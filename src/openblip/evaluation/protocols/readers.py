"""What the readers of several benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items, Preset, Score, image_file


def fields(where: str, entry: Any, **kinds: type) -> tuple[Any, ...]:
    """Values of an entry by their names, each of its kind. Raises :class:`EvaluationError` that names them all."""
    values = tuple(entry.get(name) if isinstance(entry, Mapping) else None for name in kinds)
    if not all(isinstance(value, kind) for value, kind in zip(values, kinds.values(), strict=True)):
        *some, last = map(repr, kinds)
        raise EvaluationError(f"{where} lacks {', '.join(some)}{' or ' if some else ''}{last}")
    return values


def retrieval(folder: Path, preset: Preset) -> Items:
    """The authors' files for retrieval: a list of {"image", "caption": [texts]}; ``caption`` may be one text."""
    items: Items = []
    for where, entry in files.read(folder / preset.files[0]):
        texts = entry.get("caption")
        listed = [texts] if isinstance(texts, str) else texts or None
        name, said = fields(where, {"image": entry.get("image"), "caption": listed}, image=str, caption=list)
        items.append(Item(len(items), image_file(folder, name, "images"), tuple(map(str, said))))
    return items


def recalls(source: str, checkpoint: str, *values: float) -> Score:
    """A published row of six recalls: texts for images at 1, 5 and 10, then images for texts."""
    names = [f"{side}_r{k}" for side in ("txt", "img") for k in (1, 5, 10)]
    return Score(source, (checkpoint,), dict(zip(names, values, strict=True)))
