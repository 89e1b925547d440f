"""Tensors that several members of a bundle have in common, stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from openblip.checkpoints.containers import read_checkpoint, write_safetensors
from openblip.checkpoints.folder import SAFETENSORS, SHARED
from openblip.errors import InputError
from openblip.io import atomic

_SMALLEST = 256  # values; sharing smaller tensors saves less than naming them costs


def share_tensors(folders: Sequence[Path], name: str = "shared.safetensors") -> Path:
    """Move tensors that are equal in several hub folders into one file next to them.

    The folders stay loadable where they are; `openblip convert` writes any of them as a complete folder.

    Args:
        folders: Members of one bundle, side by side.
        name: The file to write.

    Returns:
        The path of the shared file.

    Raises:
        InputError: If the folders do not have the same parent.
    """
    if len({folder.resolve().parent for folder in folders}) != 1:
        raise InputError(f"members that share tensors must lie in one folder, got {', '.join(map(str, folders))}")
    members = {folder: read_checkpoint(folder).tensors for folder in folders}
    owners: dict[str, list[tuple[Path, str]]] = {}
    for folder, tensors in members.items():
        for tensor_name, tensor in tensors.items():
            if tensor.numel() >= _SMALLEST:
                content = tensor.contiguous().view(-1).numpy().tobytes()
                digest = f"{tensor.dtype}{tuple(tensor.shape)}{hashlib.sha256(content).hexdigest()}"
                owners.setdefault(digest, []).append((folder, tensor_name))
    shared: dict[str, Tensor] = {}
    tables: dict[Path, dict[str, str]] = {folder: {} for folder in folders}
    for places in owners.values():
        if len(places) < 2:
            continue
        folder, tensor_name = places[0]
        shared_name = tensor_name if tensor_name not in shared else f"{folder.name}/{tensor_name}"
        shared[shared_name] = members[folder][tensor_name]
        for owner, owned_name in places:
            tables[owner][owned_name] = shared_name
    path = folders[0].parent / name
    write_safetensors(path, shared)
    for folder, table in tables.items():
        atomic.write_json(folder / SHARED, {"file": name, "tensors": table})
        own = {key: tensor for key, tensor in members[folder].items() if key not in table}
        write_safetensors(folder / SAFETENSORS, own)
    return path
