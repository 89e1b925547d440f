"""Resolve the name of a checkpoint to files on this machine.

A hub folder goes into the hub's cache. A `.pth` file goes into `OPENBLIP_CACHE`, by default `openblip` in Hugging
Face's home. Offline mode (`HF_HUB_OFFLINE=1`, or `offline=True`) uses only files that are there. Mirrors: `HF_ENDPOINT`
for the hub, `OPENBLIP_MIRROR` for `.pth` files, an address below which they have their file names.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import cast

from openblip.checkpoints import published
from openblip.checkpoints.folder import RECIPE, Bundle, model_of_run
from openblip.checkpoints.hub import bert_vocabulary, cached_folder, hub_folder, is_offline
from openblip.errors import CheckpointError, UnknownModelError
from openblip.io.cache import cache_folder
from openblip.io.download import download
from openblip.model.config import ModelKind
from openblip.tasks import TaskName


def resolve(
    name_or_path: str | os.PathLike[str],
    task: ModelKind | None = None,
    *,
    offline: bool | None = None,
    mirror: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the local file or folder of a checkpoint, downloaded if necessary.

    Args:
        name_or_path: A path, a published name (see `openblip models`), a hub id (`owner/name`), or the address of a
            `.pth` file. A path that exists comes before a name. The folder of a training run stands for its model.
        task: The model to take if it is a bundle.
        offline: Use no network. The default is `HF_HUB_OFFLINE`.
        mirror: Address below which `.pth` files have their names. The default is `OPENBLIP_MIRROR`.
        endpoint: Address of a mirror of the hub. The default is `HF_ENDPOINT`.

    Returns:
        The path.

    Raises:
        UnknownModelError: If the name is unknown.
        UnsupportedTaskError: If a bundle has no model for the task.
        CheckpointError: If a training run has no model yet.
        DownloadError: If the checkpoint cannot be downloaded, or is not on this machine in offline mode.
    """
    if task is not None and (bundle := Bundle.find(name_or_path)) is not None:
        if task not in bundle.models:
            raise bundle.error_without(task)
        name_or_path = bundle.models[cast(TaskName, task)]
    path = Path(name_or_path).expanduser()
    if path.exists():
        return model_of_run(path) if (path / RECIPE).is_file() else path
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
    if published.is_hub_id(name):
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
    if entry is None and not published.is_hub_id(repository):
        resolve(name_or_path, offline=True)
    elif entry is None or entry.family == "hub":
        cached_folder(repository)
    else:
        name = str(entry.file)
        if not (cache_folder() / name).exists():
            download(entry.address, cache_folder(), offline=True)  # raises the error of a missing file
        bert_vocabulary(offline=True)
