"""Where the files of a checkpoint are, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.checkpoints.hub import is_offline
from openblip.checkpoints.resolve import resolve
from openblip.checkpoints.storage import replacing
from openblip.errors import CheckpointError, DownloadError, InputError

StrPath = str | os.PathLike[str]

_IGNORED = ("proxies", "trust_remote_code", "_from_auto", "_from_pipeline")


def local_folder(name_or_path: StrPath, kwargs: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder (or file) on this machine, and the ``kwargs`` that did not say where to find it.

    A hub id is downloaded by `openblip.checkpoints.hub`; ``revision``, ``token``, ``cache_dir`` and
    ``force_download`` go to the hub's own client.
    """
    rest = dict(kwargs)
    where = {name: rest.pop(name, None) for name in ("revision", "token", "cache_dir", "force_download")}
    where["token"] = where["token"] or rest.pop("use_auth_token", None)
    local_only = bool(rest.pop("local_files_only", False))
    subfolder = rest.pop("subfolder", None) or ""
    for name in _IGNORED:
        rest.pop(name, None)
    if where["revision"] == "main":
        where["revision"] = None
    asked = {name: value for name, value in where.items() if value}
    path = Path(name_or_path).expanduser()
    if path.exists() or not asked:
        path = resolve(name_or_path, offline=True if local_only else None)
    else:
        path = _snapshot(str(name_or_path), asked, local_only)
    path = path / subfolder if subfolder else path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    return path, rest


def _snapshot(repository: str, asked: Mapping[str, Any], local_only: bool) -> Path:
    """A repository by revision, or with credentials or a cache of its own."""
    from huggingface_hub import snapshot_download

    only_here = local_only or is_offline()
    try:
        return Path(str(snapshot_download(repository, local_files_only=only_here, allow_patterns=_PATTERNS, **asked)))
    except Exception as error:  # the client lets through whatever its transport raises
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DownloadError(f"cannot fetch {repository} from the hub: {reason}") from error


_PATTERNS = ["*.json", "vocab.txt", "*.safetensors", "pytorch_model*.bin"]


def write_text(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    if path.parent.is_file():
        raise InputError(f"{path.parent} is a file; give a folder to save in")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
