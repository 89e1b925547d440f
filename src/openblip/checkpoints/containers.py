"""Files of tensors: safetensors, shards, and pickles, which may not run code."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.checkpoints.folder import PICKLE, SAFETENSORS, ModelFolder, RawCheckpoint, Reader, join_names
from openblip.errors import CheckpointError
from openblip.io import atomic
from openblip.io.hashing import sha256

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

_AGAIN = "Download or write it again"


def read_checkpoint(path: Path) -> RawCheckpoint[Tensor]:
    """Read a hub folder or a weight file.

    Args:
        path: The folder or file.

    Returns:
        Its content.

    Raises:
        CheckpointError: If there are no weights, or a file is damaged.
    """
    return ModelFolder.open(path).read(READERS) if path.is_dir() else read_weight_file(path)


def read_weight_file(path: Path) -> RawCheckpoint[Tensor]:
    """Read a weight file.

    Args:
        path: A safetensors file or a pickle.

    Returns:
        The tensors, and the other entries of a pickle.

    Raises:
        CheckpointError: If the file does not exist, is damaged, or has another suffix.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    if path.suffix in PICKLE_SUFFIXES:
        return read_pickle(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"a weight file must end in .safetensors, {', '.join(PICKLE_SUFFIXES)}, got {path}")
    try:
        return RawCheckpoint(path, load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}. {_AGAIN}") from error


def read_pickle(path: Path) -> RawCheckpoint[Tensor]:
    """Read a pickle: its tensors, and its other entries, such as the training configuration.

    The tensors may be in the entry `model` or `state_dict`. Nothing that runs code is read.

    Args:
        path: The file.

    Returns:
        The tensors and the other entries.

    Raises:
        CheckpointError: If the file is damaged, is not a checkpoint, or would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        if match := re.search(r"GLOBAL (\S+)|Unsupported (?:global|class) (\S+)", str(error)):
            raise CheckpointError(
                f"{path} would run code while it is read ({(match[1] or match[2]).rstrip('.')}), which is refused. "
                "A checkpoint may hold tensors and plain values only: save these alone, best as safetensors"
            ) from None
        raise CheckpointError(f"{path} is damaged, incomplete, or not a PyTorch file. {_AGAIN}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold tensors by name, got a {type(content).__name__}")
    container = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
    tensors = content if container is None else content[container]
    metadata = {} if container is None else {key: value for key, value in content.items() if key != container}
    if foreign := sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor)):
        raise CheckpointError(f"{path} is not a checkpoint: some entries are not tensors: {join_names(foreign)}")
    return RawCheckpoint(path, dict(tensors), metadata)


READERS: Mapping[str, Reader[Tensor]] = {SAFETENSORS: load_file, PICKLE: lambda path: read_pickle(path).tensors}
"""By the name of a hub folder's file, the function that reads it."""


def weights_digest(path: Path) -> str:
    """Return a SHA-256 that identifies weights: of a file, or of all weight files of a folder.

    A folder with one weight file has the hash of the file.

    Args:
        path: A weight file or a hub folder.

    Returns:
        The hash as hexadecimal digits.
    """
    files = [path]
    if path.is_dir():
        folder = ModelFolder.open(path)
        files = [*folder.weights, *([folder.shared] if folder.shared else [])]
    if len(files) == 1:
        return sha256(files[0])
    lines = [f"{file.name} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    """Write a `.pth`, completely or not at all.

    Args:
        path: The file.
        content: Tensors and plain values.
    """
    with atomic.replace_path(path) as temporary:
        torch.save(dict(content), temporary)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that `transformers` accepts, completely or not at all.

    Args:
        path: The file.
        tensors: The tensors by name.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic.replace_path(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt"})
