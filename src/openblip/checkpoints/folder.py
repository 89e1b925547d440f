"""Bundles and model folders: their files on this machine, found and checked. Free of torch.

A bundle is a folder with a file `bundle.json`, which maps tasks to models:

    {"caption": "models/captioner", "vqa": "Salesforce/blip-vqa-base"}

A model is a folder or file, relative to the `bundle.json`, or a published name or hub id. `base` and `large` are
bundles of published names; `pocket` is the small bundle in the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from safetensors import SafetensorError, safe_open

from openblip.checkpoints import published
from openblip.errors import CheckpointError, UnsupportedTaskError
from openblip.io import atomic
from openblip.tasks import NETWORKS, TaskName, did_you_mean

BUNDLE = "bundle.json"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
SHARED = "shared.json"
"""In the folder of a member: a file next to the folder, and the tensors in it that belong to this member too."""
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX = ".index.json"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")
RECIPE, MODEL, BEST = "recipe.yaml", "model", "best"
"""In the folder of a training run: its recipe, its final model and its best model so far."""
POCKET = Path(__file__).parent.parent / "pocket"

_SETTINGS = (CONFIG, ADAPTER_CONFIG, GENERATION_CONFIG, "processor_config.json", "preprocessor_config.json", SHARED)

TensorT = TypeVar("TensorT")
Reader: TypeAlias = Callable[[Path], Mapping[str, TensorT]]
Part: TypeAlias = tuple[Path, Reader[TensorT], Mapping[str, str] | None]
"""A file, the function that reads it, and our names of its tensors to its own; `None` for all under their own names."""


@dataclass(frozen=True)
class Bundle:
    """Several models under one name, one for each task, each loaded when it is first used.

    Attributes:
        name: The name or folder of the bundle.
        models: For each task, the absolute path of its model, or a published name or hub id.
        without_vocabulary: The tasks whose model is a hub folder without a vocabulary. A `.pth` file has the vocabulary
            of bert-base-uncased, and an adapter the vocabulary of its base.
    """

    name: str
    models: Mapping[TaskName, str | Path]
    without_vocabulary: frozenset[TaskName] = frozenset()

    @classmethod
    def find(cls, name_or_path: str | os.PathLike[str]) -> Bundle | None:
        """Return the bundle of a name, folder or `bundle.json`. A path that exists comes before a name.

        Args:
            name_or_path: What to look for.

        Returns:
            The bundle; `None` if it is a single checkpoint, or unknown.

        Raises:
            CheckpointError: If the bundle or one of its local models cannot be read. The message names the model.
        """
        path = Path(name_or_path).expanduser()
        name = "" if path.exists() else os.fspath(name_or_path)
        if name in published.BUNDLES:
            return cls(name, published.BUNDLES[name])
        if name == "pocket":
            path = POCKET / BUNDLE
        elif path.name != BUNDLE:
            path = path / BUNDLE
            if not path.is_file():
                return None
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            remedy = "install openblip again from its wheel or its repository, or choose another model"
            hint = f"; {remedy} (see `openblip models`)" if name == "pocket" else ""
            raise CheckpointError(f"cannot read the bundle {path}: {error}{hint}") from error
        if not isinstance(entries, dict) or not entries:
            raise CheckpointError(f'{path} must map tasks to models, as in {{"caption": "folder"}}')
        models = {task: _check_member(path, task, model) for task, model in entries.items()}
        bare = {
            task
            for task, model in models.items()
            if isinstance(model, Path) and (model / CONFIG).is_file()
            if not any((model / file).is_file() for file in VOCABULARY_FILES)
        }
        return cls(name or str(path.parent), models, frozenset(bare))

    def error_without(self, task: str) -> UnsupportedTaskError:
        """Return the error for a task that the bundle has no model for. It suggests a checkpoint."""
        names = " or ".join(entry.name for entry in published.serving(task)[:2])
        return UnsupportedTaskError(
            f"bundle {self.name!r} has no model for {task!r}, only for {', '.join(self.models)}"
            + did_you_mean(task, self.models)
            + (f"; load {names}" if names else "")
        )

    def error_without_vocabulary(self, task: TaskName) -> CheckpointError:
        """Return the error for a model that needs a vocabulary and has none."""
        return CheckpointError(
            f"the model of {task!r} in the bundle {self.name!r} must have a vocabulary "
            f"({' or '.join(VOCABULARY_FILES)}), got none in {self.models[task]}; copy the one it was trained with, or "
            "load with tokenizer=..."
        )


def write_bundle(folder: Path, models: Mapping[TaskName, str | Path]) -> Path:
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
        _check_member(folder / BUNDLE, task, entries[task])
    atomic.write_json(folder / BUNDLE, entries)
    return folder / BUNDLE


def _check_member(bundle: Path, task: str, model: object) -> str | Path:
    """Return a model of a bundle: its name, or its path after a check of its configuration and its weights' headers."""
    if task not in NETWORKS:
        names = ", ".join(NETWORKS)
        raise CheckpointError(f"{bundle}: task must be one of {names}, got {task!r}{did_you_mean(task, NETWORKS)}")
    if not isinstance(model, str) or not model:
        raise CheckpointError(f"{bundle}: the model of {task!r} must be a name or path, got {model!r}")
    path = bundle.parent / Path(model).expanduser()
    if not path.exists():
        if published.find(model) or published.is_hub_id(model):
            return model
        raise CheckpointError(
            f"{bundle}: the model of {task!r} must be a file or folder next to it, or a published name, got "
            f"{model!r}{published.did_you_mean(model)}"
        )
    path = path.resolve()
    if (path / RECIPE).is_file():
        path = model_of_run(path)
    file, files = path, [path]
    try:
        if path.is_dir():
            folder = ModelFolder.open(path)
            if not folder.settings.keys() & {CONFIG, ADAPTER_CONFIG} or not folder.weights:
                raise CheckpointError(f"{path} must have {CONFIG} and {SAFETENSORS} or {PICKLE}")
            files = [*folder.weights, *filter(None, [folder.shared])]
        for file in files:
            if file.suffix == ".safetensors":
                safe_open(file, "numpy")  # checks the header, and the length of the file
            else:
                with file.open("rb") as stream:  # torch.save writes a zip file, and once wrote a pickle
                    if not stream.read(2).startswith((b"PK", b"\x80")):
                        raise CheckpointError("not a file of torch.save")
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{bundle}: the model of {task!r} cannot be read: {file.name}: {error}") from error
    return path


@dataclass(frozen=True)
class RawCheckpoint(Generic[TensorT]):
    """The content of a checkpoint's files.

    Attributes:
        path: The file or folder.
        tensors: Tensors under their names in the file.
        metadata: Further entries of a pickle, such as the training configuration.
        settings: JSON files of a folder, by name: its `config.json`, its `generation_config.json` and the files of its
            image processor.
    """

    path: Path
    tensors: dict[str, TensorT]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFolder:
    """A hub folder or a LoRA adapter, whose settings are read and whose tensors are not.

    Attributes:
        path: The folder.
        settings: Its JSON files, by name.
        weights: Its files of tensors.
        shared: File next to the folder with tensors that members of a bundle have in common; `None` without one.
    """

    path: Path
    settings: Mapping[str, Mapping[str, Any]]
    weights: tuple[Path, ...]
    shared: Path | None = None

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read the settings of a folder.

        Args:
            path: The folder.

        Raises:
            CheckpointError: If a JSON file is damaged.
        """
        settings: dict[str, dict[str, Any]] = {}
        for file in (path / name for name in _SETTINGS):
            if file.is_file():
                try:
                    settings[file.name] = json.loads(file.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    raise CheckpointError(f"{file} must hold a JSON object: {error}. Write it again") from error
                if not isinstance(settings[file.name], dict):
                    raise CheckpointError(f"{file} must hold a JSON object, got {settings[file.name]!r}")
        weights = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
        shared = settings.get(SHARED)
        if shared is None:
            return cls(path, settings, tuple(weights))
        name, names = shared.get("file"), shared.get("tensors")
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path / SHARED} must name a file next to its folder, got {name!r}")
        if not isinstance(names, dict) or not all(isinstance(theirs, str) for theirs in names.values()):
            raise CheckpointError(f"{path / SHARED} must have a table of tensors and their names in {name}")
        return cls(path, settings, tuple(weights), path.parent / name)

    def read(self, readers: Mapping[str, Reader[TensorT]]) -> RawCheckpoint[TensorT]:
        """Read the tensors: of the first file that exists or its shards, and of the shared file.

        Args:
            readers: By the name of a file, the function that reads it and its shards. The first one also reads the
                shared file.

        Returns:
            The content of the folder.

        Raises:
            CheckpointError: If the folder has no weights, or if a file is damaged or lacks a tensor.
        """
        present = {file.name for file in self.path.iterdir()}
        name = next((name for name in readers if name in present or name + INDEX in present), None)
        if name is None:
            raise self._error_without_weights(present, readers)
        parts: list[Part[TensorT]] = [(self.path / name, readers[name], None)]
        if name not in present:
            parts = self._list_shards(name, readers[name])
        if self.shared is not None:
            parts.append((self.shared, next(iter(readers.values())), self.settings[SHARED]["tensors"]))
        tensors: dict[str, TensorT] = {}
        for file, reader, names in parts:
            if not file.is_file():
                raise CheckpointError(f"{self.path} refers to {file}, which does not exist")
            try:
                stored = reader(file)
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"{file} is damaged or incomplete: {error}. Write it again") from error
            wrong = set() if names is None else set(names.values()) ^ stored.keys()
            if file == self.shared:  # it also has tensors of other models
                wrong -= stored.keys()
            if wrong:
                raise CheckpointError(
                    f"{file} must have the tensors that {self.path} states; wrong are {join_names(sorted(wrong))}"
                )
            tensors |= stored if names is None else {ours: stored[theirs] for ours, theirs in names.items()}
        return RawCheckpoint(self.path, tensors, settings=self.settings)

    def _list_shards(self, name: str, reader: Reader[TensorT]) -> list[Part[TensorT]]:
        """Return the shards of a file: their paths, and the names of their tensors."""
        index = self.path / (name + INDEX)
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(files.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} must have a weight_map of tensor names to files: {error!r}") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{index} must name files in its folder, got {shard!r}")
        return [
            (self.path / shard, reader, {name: name for name, file in files.items() if file == shard})
            for shard in shards
        ]

    def _error_without_weights(self, names: Iterable[str], readers: Iterable[str]) -> CheckpointError:
        """Return the error for a folder without weights. It says how to use the files that are there."""
        hint = ""
        if weights := sorted(name for name in names if name.endswith((".pth", ".safetensors"))):
            hint = f"; to load {weights[0]}, give its path"
        elif any(name.endswith(".h5") for name in names):
            hint = "; the classes of openblip.keras read weights of TensorFlow"
        elif any(name.endswith(".msgpack") for name in names):
            hint = "; weights of Flax are not supported"
        return CheckpointError(f"{self.path} must have {' or '.join(readers)}, or their shards{hint}")


def model_of_run(folder: Path) -> Path:
    """Return the model in the folder of a training run; a model with a recipe next to it is itself.

    Args:
        folder: The folder, with a recipe.

    Raises:
        CheckpointError: If the run has no model yet.
    """
    for path in (folder, folder / MODEL):
        if any((path / name).is_file() for name in (CONFIG, ADAPTER_CONFIG, BUNDLE)):
            return path
    best = f", or load {folder / BEST}" if (folder / BEST).is_dir() else ""
    raise CheckpointError(
        f"{folder} is the folder of a training run without a model yet: finish it with `openblip train run "
        f"{folder / RECIPE} --resume`{best}"
    )


def join_names(names: list[str], limit: int = 6) -> str:
    """Return names for a message: the first ones, and how many more there are.

    Args:
        names: The names.
        limit: Most names to write out.

    Returns:
        The names, joined by commas.
    """
    text = ", ".join(names[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text
