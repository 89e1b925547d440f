"""A bundle: several models under one name, one for each task, each loaded when it is first used.

It is written down as ``bundle.json``, a mapping from task to model::

    {"caption": "models/captioner", "vqa": "Salesforce/blip-vqa-base"}

A value is a folder or file, relative to the ``bundle.json`` it stands in, or else a published name or a hub id.
``base`` and ``large`` are bundles of published names; ``pocket`` is the small one inside the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from openblip.checkpoints import published
from openblip.checkpoints.resolve import is_hub_id, resolve
from openblip.errors import CheckpointError, UnsupportedTaskError
from openblip.model.config import ModelKind
from openblip.tasks import NETWORKS

FILE = "bundle.json"
POCKET = Path(__file__).parent.parent / "pocket"


@dataclass(frozen=True)
class Bundle:
    """``models`` maps a task to the absolute path or the published name of its model."""

    name: str
    models: Mapping[ModelKind, str]

    def locate(self, task: ModelKind, *, offline: bool | None = None) -> Path:
        """The local files of a task's model, fetched if need be; :class:`UnsupportedTaskError` if there is none."""
        if task not in self.models:
            others = " or ".join(entry.name for entry in published.serving(task)[:2])
            raise UnsupportedTaskError(
                f"bundle {self.name!r} has no model for {task!r}, only for {', '.join(self.models)}"
                + (f"; load {others}" if others else "")
            )
        return resolve(self.models[task], offline=offline)


def find(name_or_path: str | os.PathLike[str]) -> Bundle | None:
    """The bundle of that name, folder or ``bundle.json``; ``None`` if it is a single checkpoint, or nothing we know.

    A path that exists comes before a name.
    """
    path = Path(name_or_path).expanduser()
    if path.name == FILE or (path / FILE).is_file():
        return read(path)
    if path.exists():
        return None
    name = os.fspath(name_or_path)
    if name == "pocket":
        return _pocket()
    if name in published.BUNDLES:
        return Bundle(name, published.BUNDLES[name])
    return None


def read(path: Path) -> Bundle:
    """The bundle in a folder or ``bundle.json``; a :class:`CheckpointError` says which entry is wrong."""
    file = path / FILE if path.is_dir() else path
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the bundle {file}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f'{file} must map tasks to models, as in {{"caption": "folder"}}')
    models: dict[ModelKind, str] = {}
    for task, model in entries.items():
        if task not in NETWORKS or not isinstance(model, str) or not model:
            raise CheckpointError(f"{file}: {task!r}: {model!r} is not a task ({', '.join(NETWORKS)}) with its model")
        models[cast("ModelKind", task)] = _model(model, file)
    return Bundle(str(file.parent), models)


def write(folder: Path, models: Mapping[ModelKind, str | Path]) -> Path:
    """Write ``folder/bundle.json``, and return its path.

    A ``Path`` is a place on this machine; one inside the folder becomes relative, so that all can be moved as a whole.
    A ``str`` is written as it is: a published name, a hub id, or a path relative to the folder.
    """
    entries = {task: _relative(model, folder) for task, model in models.items()}
    file = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{FILE}.{os.getpid()}")
    temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    try:
        read(temporary)  # what cannot be read again is not written
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _model(model: str, file: Path) -> str:
    beside = file.parent / Path(model).expanduser()
    if beside.exists():
        return str(beside.resolve())
    if published.find(model) or is_hub_id(model):
        return model
    raise CheckpointError(
        f"{file}: {model!r} is neither a file or folder beside it nor a published name{published.did_you_mean(model)}"
    )


def _relative(model: str | Path, folder: Path) -> str:
    if isinstance(model, str):
        return model
    path, home = Path(model).resolve(), folder.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def _pocket() -> Bundle:
    if not (POCKET / FILE).is_file():
        raise CheckpointError(
            f"the pocket model is missing from this installation ({POCKET}); install openblip again from its wheel or "
            "its repository, or name another model (see `openblip models`)"
        )
    return Bundle("pocket", read(POCKET).models)
