"""Which model a job uses, told by the content of its files and without loading it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from openblip.checkpoints import bundle
from openblip.checkpoints.resolve import resolve
from openblip.errors import JobError, UnsupportedTaskError
from openblip.io.cache import cache_folder
from openblip.jobs.files import replacing
from openblip.model.config import ModelKind

_SMALL = 1 << 20
_FILES = (".json", ".txt", ".safetensors", ".bin", ".pth", ".pt")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(model: str, tasks: Iterable[ModelKind], *, offline: bool | None = None) -> dict[str, str]:
    """For each task a hash of the files that serve it: of weights, configuration, vocabulary and picture settings.

    Downloads what is missing, as loading would. The same files give the same hash wherever they lie.
    """
    found = bundle.find(model)
    paths: dict[str, Path] = {}
    for task in tasks:
        if found is None:
            paths[task] = resolve(model, offline=offline)
        else:
            try:
                paths[task] = found.locate(task, offline=offline)
            except UnsupportedTaskError:
                if len(paths):  # only what is asked for first must be there
                    continue
                raise
    return {task: _hash(path) for task, path in paths.items()}


def _hash(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _FILES)
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name if path.is_dir() else ''}:{_hash_file(file)}\n".encode())
    return whole.hexdigest()[:16]


def _hash_file(file: Path) -> str:
    """SHA-256 of a file; where the hub's cache or the one beside a download names it, that one.

    That of a large file is remembered, so that weights of a gigabyte are read once and not at every start.
    """
    real = Path(os.path.realpath(file))
    if _SHA256.fullmatch(real.name):  # the hub's cache calls its files so
        return real.name
    beside = file.with_name(file.name + ".sha256")
    if file.stat().st_size > _SMALL and beside.is_file() and beside.stat().st_mtime_ns >= file.stat().st_mtime_ns:
        word = beside.read_text(encoding="utf-8").split(maxsplit=1)[0]
        if _SHA256.fullmatch(word):
            return word
    if file.stat().st_size <= _SMALL:
        return _digest(file)
    noted = cache_folder() / "hashes" / f"{blake2b(os.fsencode(real), digest_size=12).hexdigest()}.json"
    state = {"path": os.fspath(real), "size": real.stat().st_size, "mtime_ns": real.stat().st_mtime_ns}
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(noted.read_text(encoding="utf-8"))
        if {name: told[name] for name in state} == state and _SHA256.fullmatch(told["sha256"]):
            return str(told["sha256"])
    digest = _digest(file)
    with suppress(JobError), replacing(str(noted), sync=False) as out:  # a cache that cannot be written costs time only
        out.write(json.dumps(state | {"sha256": digest}).encode() + b"\n")
    return digest


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(opened)


def _slow(opened: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := opened.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as an identity holds them: those that are set."""
    unset: tuple[Any, ...] = ([], (), "")
    return {name: v for name, v in options.items() if v is not None and v is not False and v not in unset}
