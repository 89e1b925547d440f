"""A bundle: several models under one name, one for each task, each loaded when it is first used.

It is a folder with a file `bundle.json`, which maps tasks to models:

    {"caption": "models/captioner", "vqa": "Salesforce/blip-vqa-base"}

A model is a folder or file, relative to the `bundle.json`, or a published name or hub id. `base` and `large` are
bundles of published names; `pocket` is the small bundle in the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from openblip.checkpoints import published
from openblip.checkpoints.resolve import is_hub_id, locate_model, resolve
from openblip.errors import CheckpointError, UnsupportedTaskError
from openblip.io import atomic
from openblip.model.config import ModelKind
from openblip.tasks import NETWORKS, TaskName, did_you_mean

FILE = "bundle.json"
SHARED = "shared.json"
"""In the folder of a member: a file next to the folder, and the tensors in it that belong to this member too."""
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")
POCKET = Path(__file__).parent.parent / "pocket"


@dataclass(frozen=True)
class Bundle:
    """Models by task.

    Attributes:
        name: The name or folder of the bundle.
        models: For each task, the absolute path of its model, or a published name or hub id.
    """

    name: str
    models: Mapping[TaskName, str | Path]

    def locate(self, task: ModelKind, *, offline: bool | None = None) -> Path:
        """Return the local files of a task's model, downloaded if necessary.

        Args:
            task: The task.
            offline: Use no network. The default is `HF_HUB_OFFLINE`.

        Returns:
            The file or folder.

        Raises:
            UnsupportedTaskError: If the bundle has no model for the task.
            DownloadError: If the model cannot be downloaded.
        """
        if task not in self.models:
            names = " or ".join(entry.name for entry in published.serving(task)[:2])
            raise UnsupportedTaskError(
                f"bundle {self.name!r} has no model for {task!r}, only for {', '.join(self.models)}"
                + did_you_mean(task, self.models)
                + (f"; load {names}" if names else "")
            )
        return resolve(self.models[cast(TaskName, task)], offline=offline)


def find(name_or_path: str | os.PathLike[str]) -> Bundle | None:
    """Return the bundle of a name, folder or `bundle.json`. A path that exists comes before a name.

    Args:
        name_or_path: What to look for.

    Returns:
        The bundle; `None` if it is a single checkpoint, or unknown.

    Raises:
        CheckpointError: If the bundle or one of its local models cannot be read.
    """
    path, name = Path(name_or_path).expanduser(), os.fspath(name_or_path)
    if path.name == FILE or (path / FILE).is_file():
        return read(path)
    if path.exists():
        return None
    if name == "pocket":
        if not (POCKET / FILE).is_file():
            raise CheckpointError(
                f"the pocket model is missing from this installation ({POCKET}); install openblip again from its wheel "
                "or its repository, or choose another model (see `openblip models`)"
            )
        return replace(read(POCKET), name="pocket")
    return Bundle(name, published.BUNDLES[name]) if name in published.BUNDLES else None


def read(path: Path) -> Bundle:
    """Read a bundle, and check that each of its local models exists and is readable.

    Args:
        path: The folder, or its `bundle.json`.

    Returns:
        The bundle.

    Raises:
        CheckpointError: If the file or one of its models cannot be read. The message names the model.
    """
    file = path / FILE if path.is_dir() else path
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the bundle {file}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f'{file} must map tasks to models, as in {{"caption": "folder"}}')
    models: dict[TaskName, str | Path] = {}
    for task, model in entries.items():
        if task not in NETWORKS:
            names = ", ".join(NETWORKS)
            raise CheckpointError(f"{file}: task must be one of {names}, got {task!r}{did_you_mean(task, NETWORKS)}")
        if not isinstance(model, str) or not model:
            raise CheckpointError(f"{file}: the model of {task!r} must be a name or path, got {model!r}")
        member = file.parent / Path(model).expanduser()
        if member.exists():
            member = locate_model(member.resolve())
            models[task] = member
            try:
                _check_member(member)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{file}: the model of {task!r} cannot be read: {error}") from error
        elif published.find(model) or is_hub_id(model):
            models[task] = model
        else:
            raise CheckpointError(
                f"{file}: the model of {task!r} must be a file or folder next to it, or a published name, got "
                f"{model!r}{published.did_you_mean(model)}"
            )
    return Bundle(str(file.parent), models)


def check_vocabularies(bundle: Bundle, tasks: Iterable[ModelKind]) -> None:
    """Check that the local models of some tasks have a vocabulary.

    A `.pth` file has the vocabulary of bert-base-uncased, and an adapter the vocabulary of its base.

    Args:
        bundle: The bundle.
        tasks: The tasks to use.

    Raises:
        CheckpointError: If a folder has none. The message names the model.
    """
    for task in tasks:
        member = bundle.models.get(cast(TaskName, task))
        if not isinstance(member, Path) or not (member / "config.json").is_file():
            continue
        if not any((member / name).is_file() for name in VOCABULARY_FILES):
            raise CheckpointError(
                f"the model of {task!r} in the bundle {bundle.name!r} must have {' or '.join(VOCABULARY_FILES)}, got "
                f"neither in {member}; copy the vocabulary it was trained with, or load with tokenizer=..."
            )


def write(folder: Path, models: Mapping[TaskName, str | Path]) -> Path:
    """Write `bundle.json`. A bundle that cannot be read again is not written.

    Args:
        folder: The folder of the bundle.
        models: For each task, the path of its model on this machine, as a `Path`; or text to write as it is: a
            published name, a hub id, or a path relative to the folder. Paths inside the folder become relative, so that
            the bundle can be moved.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: If a model cannot be found or read.
    """
    home = folder.resolve()
    entries: dict[str, str] = {}
    for task, model in models.items():
        path = Path(model).resolve()
        if isinstance(model, str):
            entries[task] = model
        else:
            entries[task] = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
    with atomic.replace_path(folder / FILE) as temporary:
        temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        read(temporary)
    return folder / FILE


def _check_member(member: Path) -> None:
    """Read the configuration of a model and the headers of its safetensors files.

    Raises:
        OSError: If a file is missing or cannot be read.
        ValueError: If a file is damaged.
    """
    if member.is_dir():
        adapter = member / "adapter_config.json"  # an adapter has no other configuration
        config = adapter if adapter.is_file() else member / "config.json"
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config.name} is not JSON: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{config.name} must hold a JSON object")
        files = [file for file in member.iterdir() if file.suffix in (".safetensors", ".bin")]
        if not files:
            raise ValueError(f"{member} must have model.safetensors or pytorch_model.bin")
        if (member / SHARED).is_file() and (shared := shared_file(member)) is not None:
            files.append(shared)
    else:
        files = [member]
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(8)
            if file.suffix == ".safetensors":  # the length of the header, the header in JSON, the tensors
                header = stream.read(min(int.from_bytes(start, "little"), file.stat().st_size))
                try:
                    sizes = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name[:2] != "__"]
                    size = 8 + len(header) + max(sizes, default=0)
                except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                    raise ValueError(f"{file.name} has a damaged header") from error
                if size != file.stat().st_size:
                    raise ValueError(f"{file.name} is incomplete")
            elif not start.startswith((b"PK", b"\x80")):  # torch.save writes a zip file, and once wrote a pickle
                raise ValueError(f"{file.name} is not a file of torch.save")


def shared_file(member: Path) -> Path | None:
    """Return the file in which a member of a bundle shares tensors with other members.

    Args:
        member: The folder of the member.

    Returns:
        The file; `None` if the member shares no tensors.

    Raises:
        CheckpointError: If the reference is damaged, or leads elsewhere than next to the folder.
    """
    reference = member / SHARED
    if not reference.is_file():
        return None
    try:
        content = json.loads(reference.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{reference} cannot be read: {error}") from error
    name = content.get("file") if isinstance(content, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{reference} must name a file next to its folder, got {name!r}")
    return member.parent / name
