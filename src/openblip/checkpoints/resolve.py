"""Resolve the name of a checkpoint to files on this machine.

A hub folder goes into the hub's cache. A `.pth` file goes into `OPENBLIP_CACHE`, by default `openblip` in Hugging
Face's home. Offline mode (`HF_HUB_OFFLINE=1`, or `offline=True`) uses only files that are there. Mirrors: `HF_ENDPOINT`
for the hub, `OPENBLIP_MIRROR` for `.pth` files, an address below which they have their file names.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from openblip.checkpoints import published
from openblip.checkpoints.hub import bert_vocabulary, cached_folder, hub_folder, is_offline
from openblip.errors import CheckpointError, UnknownModelError
from openblip.io.cache import cache_folder
from openblip.io.download import download

RECIPE, MODEL, BEST = "recipe.yaml", "model", "best"
"""In the folder of a training run: its recipe, its final model and its best model so far."""

_CONFIGS = ("config.json", "adapter_config.json", "bundle.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    mirror: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the local file or folder of a checkpoint, downloaded if necessary.

    Args:
        name_or_path: A path, a published name (see `openblip models`), a hub id (`owner/name`), or the address of a
            `.pth` file. A path that exists comes before a name. The folder of a training run stands for its model.
        offline: Use no network. The default is `HF_HUB_OFFLINE`.
        mirror: Address below which `.pth` files have their names. The default is `OPENBLIP_MIRROR`.
        endpoint: Address of a mirror of the hub. The default is `HF_ENDPOINT`.

    Returns:
        The path.

    Raises:
        UnknownModelError: If the name is unknown.
        CheckpointError: If a training run has no model yet.
        DownloadError: If the checkpoint cannot be downloaded, or is not on this machine in offline mode.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return locate_model(path)
    name = os.fspath(name_or_path)
    offline = is_offline() if offline is None else offline
    if entry := published.find(name):
        if entry.family == "hub":
            return hub_folder(entry.address, offline=offline, endpoint=endpoint)
        mirror = mirror or os.environ.get("OPENBLIP_MIRROR")
        address = f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.address
        return download(address, cache_folder(), digits=entry.digits, offline=offline)
    if name.startswith(("https://", "http://")):
        subfolder = hashlib.sha256(name.encode()).hexdigest()[:12]  # two addresses may end in one file name
        return download(name, cache_folder() / subfolder, offline=offline)
    if is_hub_id(name):
        return hub_folder(name, offline=offline, endpoint=endpoint)
    if name == "pocket" or name in published.BUNDLES:
        raise CheckpointError(f"{name!r} is a bundle of several models; name one of them (see `openblip models`)")
    raise UnknownModelError(
        f"{name!r} must be a file or folder on this machine, a published name, or a hub id"
        f"{published.did_you_mean(name)}; see `openblip models`"
    )


def check_local(name_or_path: str | os.PathLike[str]) -> None:
    """Raise an error if offline mode could not load a checkpoint. Weights are neither read nor verified.

    Args:
        name_or_path: A path, a published name, a hub id, or the address of a `.pth` file.

    Raises:
        UnknownModelError: If the name is unknown.
        DownloadError: If a file of the checkpoint is not on this machine. The message names it.
    """
    if Path(name_or_path).expanduser().exists():
        return
    entry = published.find(os.fspath(name_or_path))
    repository = entry.address if entry is not None and entry.family == "hub" else os.fspath(name_or_path)
    if entry is None and not is_hub_id(repository):
        resolve(name_or_path, offline=True)
    elif entry is None or entry.family == "hub":
        cached_folder(repository)
    else:
        name = str(entry.file)
        if not (cache_folder() / name).exists():
            download(entry.address, cache_folder(), offline=True)  # raises the error of a missing file
        bert_vocabulary(offline=True)


def locate_model(path: Path) -> Path:
    """Return the model in the folder of a training run, and any other path unchanged.

    Args:
        path: A file or folder.

    Raises:
        CheckpointError: If the run has no model yet.
    """
    if not (path / RECIPE).is_file() or any((path / name).is_file() for name in _CONFIGS):
        return path
    if any((path / MODEL / name).is_file() for name in _CONFIGS):
        return path / MODEL
    best = f", or load {path / BEST}" if (path / BEST).is_dir() else ""
    raise CheckpointError(
        f"{path} is the folder of a training run without a model yet: finish it with `openblip train run "
        f"{path / RECIPE} --resume`{best}"
    )


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `owner/name` and is not the name of a file."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".pth", ".json"))
