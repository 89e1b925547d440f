"""The files of a hub folder, apart from what reads tensors: names, shards, shared files. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from openblip.checkpoints.bundle import SHARED, shared_file
from openblip.errors import CheckpointError

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX = ".index.json"

TensorT = TypeVar("TensorT")


def read_files(folder: Path, readers: Mapping[str, Callable[[Path], dict[str, TensorT]]]) -> dict[str, TensorT]:
    """Return the tensors of a hub folder: of the first file that exists, or of its shards.

    Args:
        folder: The folder.
        readers: By the name of a file, what reads it and its shards. The first one also reads shared files.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: If the folder has no weights, or if a file is damaged.
    """
    read_first = next(iter(readers.values()))
    for name, reader in readers.items():
        if (folder / name).is_file():
            return reader(folder / name) | _read_shared(folder, read_first)
        if (folder / (name + INDEX)).is_file():
            return _read_shards(folder / (name + INDEX), reader)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    hint = ""
    if weights := [name for name in names if name.endswith((".pth", ".safetensors"))]:
        hint = f"; to load {weights[0]}, give its path"
    elif any(name.endswith(".h5") for name in names):
        hint = "; the classes of openblip.keras read weights of TensorFlow"
    elif any(name.endswith(".msgpack") for name in names):
        hint = "; weights of Flax are not supported"
    raise CheckpointError(f"{folder} must have {' or '.join(readers)}, or their shards{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        CheckpointError: If the file cannot be read, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def join_names(names: list[str], limit: int = 6) -> str:
    """Return names for a message: the first ones, and how many more there are.

    Args:
        names: The names.
        limit: Most names to write out.

    Returns:
        The names, joined by commas.
    """
    text = ", ".join(names[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text


def _read_shared(folder: Path, reader: Callable[[Path], dict[str, TensorT]]) -> dict[str, TensorT]:
    """Return the tensors that a folder takes from a shared file, which must have all of them."""
    if (file := shared_file(folder)) is None:
        return {}
    names = read_json(folder / SHARED).get("tensors")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{folder / SHARED} has no table of tensors and their names in {file.name}")
    if not file.is_file():
        raise CheckpointError(f"{folder / SHARED} names {file.name}, which is not next to {folder}")
    stored = reader(file)
    if missing := sorted(set(names.values()) - stored.keys()):
        raise CheckpointError(f"{file} lacks what {folder / SHARED} names: {join_names(missing)}")
    return {ours: stored[theirs] for ours, theirs in names.items()}


def _read_shards(index: Path, reader: Callable[[Path], dict[str, TensorT]]) -> dict[str, TensorT]:
    """Return the tensors of all shards of an index. Each shard must have exactly the tensors that the index states."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{index} must have a weight_map of tensor names to files")
    tensors: dict[str, TensorT] = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if Path(file).name != file:
            raise CheckpointError(f"{index} must name files in its folder, got {file!r}")
        if not path.is_file():
            raise CheckpointError(f"{index} names the shard {file}, which does not exist")
        shard = reader(path)
        stated = {name for name, shard_file in files.items() if shard_file == file}
        if wrong := sorted(stated ^ shard.keys()):
            raise CheckpointError(f"the shard {path} does not have the tensors of its index: {join_names(wrong)}")
        tensors |= shard
    return tensors
