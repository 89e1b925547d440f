"""Helpers of the readers of several benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.protocols.base import Item, Items, Preset


def get_fields(location: str, entry: Any, **types: type) -> tuple[Any, ...]:
    """Return the values of an entry.

    Args:
        location: Where the entry is, for error messages.
        entry: The entry.
        **types: The type of each value, by name.

    Returns:
        The values, in the order of `types`.

    Raises:
        EvaluationError: If a value is missing or has another type.
    """
    values = []
    for name, kind in types.items():
        value = entry.get(name) if isinstance(entry, Mapping) else None
        if not isinstance(value, kind) or isinstance(value, bool):  # true is not the number 1
            *names, final = map(repr, types)
            raise EvaluationError(f"{location} lacks {', '.join(names)}{' or ' if names else ''}{final}")
        values.append(value)
    return tuple(values)


def check_texts(location: str, name: str, value: object) -> tuple[str, ...]:
    """Return a list of texts as a tuple.

    Args:
        location: Where the list is, for error messages.
        name: The name of the list.
        value: The list.

    Returns:
        The texts.

    Raises:
        EvaluationError: If the value is not a list of texts, or is empty.
    """
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise EvaluationError(f"{location}: {name!r} must be a list of at least one text")
    return tuple(value)


def find_image(folder: Path, name: str, *subfolders: str) -> str:
    """Return the path of an image: in the folder itself, or in the first of `subfolders` that has it.

    Args:
        folder: The folder of the benchmark.
        name: The name of the file.
        *subfolders: Where the archives of the data set put it.

    Returns:
        The path. If the file does not exist, evaluation reports the item as failed.
    """
    for subfolder in ("", *subfolders):
        path = folder / subfolder / name
        if path.is_file():
            return str(path)
    return str(folder / name)


def read_retrieval(folder: Path, preset: Preset) -> Items:
    """Read the authors' files for retrieval: a list of {"image", "caption": [texts]}; `caption` may be one text.

    Args:
        folder: The folder of the benchmark's files.
        preset: The preset.

    Returns:
        An item per image, with its texts.

    Raises:
        EvaluationError: If the file is broken, or if an image occurs twice.
    """
    items: Items = []
    names: set[str] = set()
    for location, entry in files.read_entries(folder / preset.split.files[0]):
        value = entry.get("caption")
        texts = [value] if isinstance(value, str) else value
        name, texts = get_fields(location, {**entry, "caption": texts or None}, image=str, caption=list)
        add_unique(location, name, names)
        image = find_image(folder, name, "images")
        items.append(Item(len(items), image, check_texts(location, "caption", texts)))
    return items


def add_unique(location: str, key: str, keys: set[str]) -> None:
    """Add a key to the keys of earlier entries.

    Args:
        location: Where the entry is, for error messages.
        key: The key of the entry.
        keys: The keys of earlier entries.

    Raises:
        EvaluationError: If an earlier entry has the same key.
    """
    if key in keys:
        raise EvaluationError(f"{location}: {key!r} occurs a second time")
    keys.add(key)
