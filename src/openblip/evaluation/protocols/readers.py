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
    if not all(_is(value, kind) for value, kind in zip(values, kinds.values(), strict=True)):
        *some, last = map(repr, kinds)
        raise EvaluationError(f"{where} lacks {', '.join(some)}{' or ' if some else ''}{last}")
    return values


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))  # no file means 1 by true


def retrieval(folder: Path, preset: Preset) -> Items:
    """The authors' files for retrieval: a list of {"image", "caption": [texts]}; ``caption`` may be one text."""
    items: Items = []
    names: set[str] = set()
    for where, entry in files.read(folder / preset.files[0]):
        texts = entry.get("caption")
        listed = [texts] if isinstance(texts, str) else texts
        name, said = fields(where, {**entry, "caption": listed or None}, image=str, caption=list)
        once(where, name, names)
        items.append(Item(len(items), image_file(folder, name, "images"), some_texts(where, "caption", said)))
    return items


def once(where: str, key: Any, seen: set[Any]) -> None:
    """Note what an entry is about. Raises :class:`EvaluationError` if an earlier one is about the same."""
    if key in seen:
        raise EvaluationError(f"{where}: {key!r} is there a second time")
    seen.add(key)


def some_texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, at least one. Raises :class:`EvaluationError` for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise EvaluationError(f"{where}: {name!r} is not a list of texts, at least one")
    return tuple(value)


def recalls(source: str, checkpoint: str, *values: float) -> Score:
    """A published row of six recalls: texts for images at 1, 5 and 10, then images for texts."""
    names = [f"{side}_r{k}" for side in ("txt", "img") for k in (1, 5, 10)]
    return Score(source, (checkpoint,), dict(zip(names, values, strict=True)))
