"""Identify a model by the content of its files, without loading it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from openblip.checkpoints.folder import Bundle, ModelFolder
from openblip.checkpoints.resolve import resolve
from openblip.io.hashing import MEMO_MIN_BYTES, sha256
from openblip.model.config import ModelKind

_SUFFIXES = (".json", ".txt", ".safetensors", ".bin", ".pth", ".pt")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(model: str, tasks: Iterable[ModelKind], *, offline: bool | None = None) -> dict[str, str]:
    """Return a hash of the files that serve each task: weights, configuration, vocabulary and image settings.

    Missing files are downloaded, as for loading. The same files have the same hash in every folder.

    Args:
        model: The name or path of a model or bundle.
        tasks: The tasks. A bundle must have a model for the first one; the others may be missing.
        offline: Use no network. The default is `HF_HUB_OFFLINE`.

    Returns:
        The hash of each task, 16 hexadecimal digits.

    Raises:
        UnsupportedTaskError: If a bundle has no model for the first task.
        DownloadError: If a file cannot be downloaded.
    """
    bundle = Bundle.find(model)
    paths: dict[str, Path] = {}
    for task in tasks:
        if bundle is None or task in bundle.models or not paths:
            paths[task] = resolve(model, task, offline=offline)
    return {task: _hash_files(path) for task, path in paths.items()}


def _hash_files(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of the files in a folder."""
    files = [path]
    if path.is_dir():
        shared = ModelFolder.open(path).shared
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES) + ([shared] if shared else [])
    digest = hashlib.sha256()
    for file in files:
        name = file.name if path.is_dir() else ""
        digest.update(f"{name}:{_hash_file(file)}\n".encode())
    return digest.hexdigest()[:16]


def _hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, from the name of a file in the hub's cache or from NAME.sha256 if possible."""
    blob = Path(os.path.realpath(file))
    if _SHA256.fullmatch(blob.name):
        return blob.name
    record = file.with_name(file.name + ".sha256")
    if file.stat().st_size >= MEMO_MIN_BYTES and record.is_file():
        digest = record.read_text(encoding="utf-8").split(maxsplit=1)[0]
        if record.stat().st_mtime_ns >= file.stat().st_mtime_ns and _SHA256.fullmatch(digest):
            return digest
    return sha256(file)
