"""The folder of files that can be fetched or computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for downloads and computed files.

    `OPENBLIP_CACHE` names it; the default is `openblip` in Hugging Face's home (`HF_HOME`, or `huggingface` in
    `XDG_CACHE_HOME` or `~/.cache`). The environment is read at each call, so that a program can set it late.

    Returns:
        The folder, which may not exist yet.
    """
    if folder := os.environ.get("OPENBLIP_CACHE"):
        return Path(folder).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{shared}/huggingface"
    return Path(home).expanduser() / "openblip"
