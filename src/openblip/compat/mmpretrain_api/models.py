"""`get_model` and `list_models`: the published names, and all other checkpoints that `openblip.load` accepts."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openblip import blip as facade
from openblip.blip import Blip
from openblip.checkpoints import hub, published
from openblip.checkpoints.folder import Bundle
from openblip.checkpoints.read import LoadedModel
from openblip.engine.device import resolve_device
from openblip.engine.eager import EagerEngine
from openblip.errors import InputError
from openblip.model.build import build_model
from openblip.model.config import CAPTION_PROMPT, preset
from openblip.pipelines.base import TaskModel
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import SERVED_TASKS, TaskName
from openblip.tasks import find as find_task

_TITLES = (
    "Image Caption",
    "Visual Question Answering",
    "Visual Grounding",
    "NLVR",
    "Text-To-Image Retrieval",
    "Image-To-Text Retrieval",
)
# Task names of mmpretrain, and the task of OpenBLIP for each.
TASKS: Mapping[str, TaskName] = {title: find_task(title).name for title in _TITLES}


class Model:
    """A model for inferencers.

    Attributes:
        name: Name or path of the model.
        blip: The model as `openblip.load` returns it.
    """

    def __init__(self, name: str, blip: Blip) -> None:
        self.name = name
        self.blip = blip

    @property
    def tasks(self) -> list[str]:
        """The tasks that the model supports, under their names in `mmpretrain`."""
        return [name for name, task in TASKS.items() if task in self.blip.tasks]

    def task_model(self, task: TaskName) -> TaskModel:
        """Return the model of one of OpenBLIP's tasks.

        Args:
            task: The task.

        Returns:
            The model of one of OpenBLIP's tasks.

        Raises:
            UnsupportedTaskError: If the model does not support the task.
        """
        return self.blip.pipeline(task).model

    def module(self, task: TaskName | None = None) -> nn.Module:
        """Return the PyTorch module.

        Args:
            task: A task of OpenBLIP; by default the model's only task.

        Returns:
            The PyTorch module.

        Raises:
            InputError: If the model has several tasks and none is given.
        """
        if task is None and len(self.blip.tasks) > 1:
            raise InputError(f"task must be one of {', '.join(self.blip.tasks)} for {self.name}, got None")
        module: nn.Module = self.task_model(task or self.blip.tasks[0]).module
        return module

    def eval(self) -> Model:
        """Return the model, which is always in evaluation mode.

        Returns:
            The model, which is always in evaluation mode.
        """
        return self


def list_models(
    pattern: str | None = None, exclude_patterns: Sequence[str] | None = None, task: str | None = None
) -> list[str]:
    """Return the sorted names of published models.

    Args:
        pattern: Wildcard pattern that names must start with.
        exclude_patterns: Wildcard patterns that names must not start with.
        task: Task under its name in `mmpretrain`, such as "Image Caption".

    Returns:
        The sorted names of published models.

    Raises:
        InputError: If the task is unknown.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    names = []
    for entry in published.PUBLISHED:
        if entry.family != "mmpretrain" or (task is not None and TASKS[task] != entry.task):
            continue
        excluded = any(fnmatch.fnmatch(entry.name, f"{exclude}*") for exclude in exclude_patterns or ())
        if not excluded and (pattern is None or fnmatch.fnmatch(entry.name, f"{pattern}*")):
            names.append(entry.name)
    return sorted(names)


def get_model(
    model: str | Path, pretrained: bool | str | Path = False, device: str | torch.device | None = None, **unknown: Any
) -> Model:
    """Return a model.

    Args:
        model: Published name (in any case), or another checkpoint that `openblip.load` accepts.
        pretrained: Load the published weights, or the weights of a file. With `False`, a published architecture has
            random weights; other checkpoints are loaded.
        device: Device to run on; by default a GPU if there is one.
        **unknown: Settings of `mmpretrain`'s configuration files, which are rejected.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: If there is no such model.
        TypeError: If there are unknown arguments.
    """
    if unknown:
        raise TypeError(f"get_model has no argument {', '.join(unknown)}: models have no configuration files here")
    device_name = "auto" if device is None else str(device)
    name = str(model)
    entry = published.find(name)
    if isinstance(pretrained, str | Path):
        return Model(name, facade.load(pretrained, task=entry.task if entry else None, device=device_name))
    if pretrained or entry is None or Path(name).exists() or Bundle.find(name):
        return Model(name, facade.load(model, device=device_name))
    return Model(name, _build_untrained(entry, device_name))


def _build_untrained(entry: published.Published, device: str) -> Blip:
    """Return a published architecture with random weights."""
    config = preset(entry.task, entry.size, entry.image_size)
    tokenizer = Tokenizer.from_vocab(hub.bert_vocabulary())
    prompt = CAPTION_PROMPT if entry.task == "caption" else None
    image = ImageSettings(size=config.vision.image_size)
    loaded = LoadedModel(build_model(config), config, tokenizer, image, prompt, entry.family, entry.name)
    model = TaskModel(loaded, EagerEngine(loaded.model, resolve_device(device), torch.float32))
    return Blip(entry.name, dict.fromkeys(SERVED_TASKS[entry.task], lambda: model))


def init_model(
    config: str | Path, checkpoint: str | Path | None = None, device: str | torch.device | None = None, **unknown: Any
) -> Model:
    """Return a model; `get_model` under the name that scripts for configuration files call.

    Args:
        config: Published name, or another checkpoint that `openblip.load` accepts. The path of a configuration file of
            `mmpretrain` stands for the published name in it.
        checkpoint: File with weights; `None` for random weights of a published name.
        device: Device to run on.
        **unknown: Settings of `mmpretrain`'s configuration files, which are rejected.

    Returns:
        The model, in evaluation mode.
    """
    name = Path(config).stem if str(config).endswith(".py") else config
    for candidate in list_models() if str(config).endswith(".py") else ():
        if Path(str(name)).stem in (candidate, candidate.replace("_3rdparty", "")):
            name = candidate
    return get_model(name, checkpoint or False, device, **unknown)


class ModelHub:
    """The published models by name."""

    @staticmethod
    def has(model_name: str) -> bool:
        """Return whether there is a published model.

        Args:
            model_name: Published name, in any case.

        Returns:
            Whether there is a published model.
        """
        return model_name.lower() in list_models()

    @staticmethod
    def get(model_name: str) -> published.Published:
        """Return the entry of a published model: its task, size, file and checksum.

        Args:
            model_name: Published name, in any case.

        Returns:
            The entry.

        Raises:
            ValueError: There is no such model.
        """
        entry = published.find(model_name)
        if entry is None or entry.family != "mmpretrain":
            raise InputError(f"model_name must be one of {', '.join(list_models())}, got {model_name!r}")
        return entry
