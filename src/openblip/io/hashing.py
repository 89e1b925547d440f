"""SHA-256 of files. The hashes of large files are stored on disk, so that gigabytes of weights are read once."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path

from openblip.io.atomic import write_json
from openblip.io.cache import cache_folder

MEMO_MIN_BYTES = 1 << 20
_BLOCK = 1 << 20


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    The hash of a file of a mebibyte or more is stored in the folder `hashes` of the cache, with the file's size and
    modification time. It is used again while these two are unchanged.

    Args:
        path: The file.

    Returns:
        The hash.

    Raises:
        OSError: If the file cannot be read.
    """
    file = Path(os.path.realpath(path))
    if file.stat().st_size < MEMO_MIN_BYTES:
        return compute_sha256(file)
    entry, state = _memo(file)
    with suppress(OSError, ValueError, TypeError, LookupError):
        stored = json.loads(entry.read_text(encoding="utf-8"))
        digest = str(stored["sha256"])
        if stored == state | {"sha256": digest} and re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    digest = compute_sha256(file)
    store_sha256(file, digest)
    return digest


def compute_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, always from its content.

    Args:
        path: The file, which is read in blocks.

    Returns:
        The hash.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):  # hashlib.file_digest needs Python 3.11
            digest.update(block)
    return digest.hexdigest()


def store_sha256(path: str | os.PathLike[str], digest: str) -> None:
    """Store the hash of a large file, so that `sha256` need not read it. A read-only cache costs time only.

    Args:
        path: The file.
        digest: Its SHA-256.
    """
    file = Path(os.path.realpath(path))
    with suppress(OSError, ValueError):
        if file.stat().st_size >= MEMO_MIN_BYTES:
            entry, state = _memo(file)
            write_json(entry, state | {"sha256": digest}, indent=None)


def _memo(file: Path) -> tuple[Path, dict[str, str | int]]:
    """Return the file that stores the hash of `file`, and the state of `file` that the hash belongs to."""
    stat = file.stat()
    name = hashlib.blake2b(os.fsencode(file), digest_size=12).hexdigest()
    state: dict[str, str | int] = {"path": os.fspath(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return cache_folder() / "hashes" / f"{name}.json", state
