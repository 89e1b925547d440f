"""Tensors in files: safetensors, shards, pickles without code; and writing that never leaves half a file behind."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.errors import CheckpointError

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX = ".index.json"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds, before anyone asked what it is.

    ``container`` is the key that the tensors lay under (``model``, ``state_dict``) or ``None``; ``beside`` are the
    other entries of that pickle, such as the training configuration.
    """

    path: Path
    tensors: dict[str, Tensor]
    container: str | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_stored(path: Path) -> Stored:
    """All tensors of a weight file, or of a hub folder. Raises :class:`CheckpointError` naming what is wrong."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return Stored(path, _read_safetensors(path))
    if path.suffix in PICKLE_SUFFIXES:
        return _read_pickle(path)
    raise CheckpointError(f"{path} is no weight file: it must end in .safetensors, {', '.join(PICKLE_SUFFIXES)}")


def digest(path: Path) -> str:
    """SHA-256 of a weight file, or of all those in a hub folder, by the order of their names; read in small pieces."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table; :class:`CheckpointError` if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a table")
    return content


def _read_folder(folder: Path) -> Stored:
    for name, read in ((SAFETENSORS, _read_safetensors), (PICKLE, lambda path: _read_pickle(path).tensors)):
        if (folder / name).is_file():
            return Stored(folder, read(folder / name))
        if (folder / (name + INDEX)).is_file():
            return Stored(folder, _read_shards(folder / (name + INDEX), read))
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    hint = ""
    if weights := [name for name in there if name.endswith((".pth", ".safetensors"))]:
        hint = f"; to load {weights[0]}, give its path"
    elif any(name.endswith((".h5", ".msgpack")) for name in there):
        hint = "; weights of TensorFlow or Flax are not read"
    raise CheckpointError(f"{folder} holds neither {SAFETENSORS} nor {PICKLE} (nor their shards){hint}")


def _read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """All shards of an index, which must hold exactly the tensors that the index promises."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index} points outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names the shard {name}, which is not there")
        shard = read(index.parent / name)
        promised = {tensor for tensor, place in places.items() if place == name}
        if wrong := sorted(promised ^ shard.keys()):
            raise CheckpointError(f"the shard {index.parent / name} does not hold what its index says: {listed(wrong)}")
        tensors |= shard
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}. {_AGAIN}") from error


_AGAIN = "Fetch or write it again"


def _read_pickle(path: Path) -> Stored:
    content = _unpickle(path)
    container = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    tensors = content if container is None else content[container]
    beside = {} if container is None else {key: value for key, value in content.items() if key != container}
    if strangers := sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor)):
        raise CheckpointError(f"{path} is no checkpoint: some of its entries are no tensors: {listed(strangers)}")
    return Stored(path, dict(tensors), container, beside)


def _unpickle(path: Path) -> Mapping[str, Any]:
    """The content of a pickle that may hold tensors and plain values, and nothing that runs code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        if wanted := re.search(r"GLOBAL (\S+)|Unsupported (?:global|class) (\S+)", str(error)):
            raise CheckpointError(
                f"{path} wants to run code while it is read ({(wanted[1] or wanted[2]).rstrip('.')}), which is "
                "refused. Only tensors and plain values are read: save those alone, best as safetensors"
            ) from None
        raise CheckpointError(f"{path} is damaged, incomplete, or no PyTorch file at all. {_AGAIN}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not tensors by name")
    return content


def listed(names: list[str], most: int = 6) -> str:
    """Names for a message: all if they are few, else the first ones and how many more."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    """A ``.pth``, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(dict(content), temporary)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file that ``transformers`` accepts, whole or not at all."""
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, put in its place if the block succeeds and removed if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path, last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder to fill; if the block succeeds its files become those of ``folder``, ``last`` after all others.

    A new folder appears at once, whole. In an existing one the file ``last`` goes first and comes back at the end, so
    that a folder in which writing was cut short is refused and not mistaken for a mixture of old and new; files called
    as in ``stale`` are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        if not folder.exists():
            temporary.replace(folder)
            return
        for name in (last, *stale):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
