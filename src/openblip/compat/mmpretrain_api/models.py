"""``get_model`` and ``list_models``: the five published names, and everything else that ``openblip.load`` takes."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openblip import blip as facade
from openblip.blip import Blip
from openblip.checkpoints import bundle, hub, published
from openblip.checkpoints.read import LoadedModel
from openblip.engine.device import resolve_device
from openblip.engine.eager import EagerEngine
from openblip.errors import InputError
from openblip.model.build import build
from openblip.model.config import preset
from openblip.pipelines.base import TaskModel
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import SERVED_TASKS, TaskName

# What that library calls the tasks, and which of ours serves each.
TASKS: Mapping[str, TaskName] = {
    "Image Caption": "caption",
    "Visual Question Answering": "vqa",
    "Visual Grounding": "grounding",
    "NLVR": "nlvr",
    "Text-To-Image Retrieval": "retrieval",
    "Image-To-Text Retrieval": "retrieval",
}


class Model:
    """A model that inferencers take: ``blip`` is ours, ``module(task)`` its ``nn.Module``."""

    def __init__(self, name: str, blip: Blip) -> None:
        self.name = name
        self.blip = blip

    @property
    def tasks(self) -> list[str]:
        """That library's names of what it serves."""
        return [name for name, task in TASKS.items() if task in self.blip.tasks]

    def part(self, task: TaskName) -> TaskModel:
        """The model of one of our tasks; :class:`UnsupportedTaskError` names another checkpoint if it has none."""
        return self.blip.pipeline(task).model

    def module(self, task: TaskName | None = None) -> nn.Module:
        """The network, of the only task if none is named."""
        if task is None and len(self.blip.tasks) > 1:
            raise InputError(f"{self.name} serves {', '.join(self.blip.tasks)}: say which")
        found: nn.Module = self.part(task or self.blip.tasks[0]).module
        return found

    def eval(self) -> Model:
        """It already is."""
        return self


def list_models(
    pattern: str | None = None, exclude_patterns: Sequence[str] | None = None, task: str | None = None
) -> list[str]:
    """The published names, sorted: those that begin as ``pattern`` (with wildcards), and serve ``task``.

    ``task`` is that library's name for one, as "Image Caption".
    """
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task {task!r}; one of {', '.join(TASKS)}")
    names = {entry.name: entry.task for entry in published.PUBLISHED if entry.family == "mmpretrain"}
    return sorted(
        name
        for name, serves in names.items()
        if (pattern is None or fnmatch.fnmatch(name, f"{pattern}*"))
        and not any(fnmatch.fnmatch(name, f"{left_out}*") for left_out in exclude_patterns or ())
        and (task is None or TASKS[task] == serves)
    )


def get_model(
    model: str | Path, pretrained: bool | str | Path = False, device: str | torch.device | None = None, **unknown: Any
) -> Model:
    """A model by name: with its published weights, those of a file, or, by default, fresh ones.

    ``model`` is a published name (case does not matter) or whatever :func:`openblip.load` takes; a file or folder of
    one's own is loaded whatever ``pretrained`` says. Raises :class:`CheckpointError` for a name that means nothing,
    and ``TypeError`` for settings of that library's configuration files.
    """
    if unknown:
        raise TypeError(
            f"get_model takes no {', '.join(unknown)}: those change configuration files, which we have none of"
        )
    place = "auto" if device is None else str(device)
    name = str(model)
    entry = published.find(name)
    if isinstance(pretrained, str | Path):
        return Model(name, facade.load(pretrained, task=entry.task if entry else None, device=place))
    if pretrained or entry is None or Path(name).exists() or bundle.find(name):
        return Model(name, facade.load(model, device=place))
    return Model(name, _fresh(entry, place))


def _fresh(entry: published.Published, place: str) -> Blip:
    """The published architecture with the weights that training would begin with."""
    config = preset(entry.task, entry.size, entry.image_size)
    tokenizer = Tokenizer.from_vocab(hub.bert_vocabulary())
    prompt = "a picture of " if entry.task == "caption" else None
    image = ImageSettings(size=config.vision.image_size)
    loaded = LoadedModel(build(config), config, tokenizer, image, prompt, entry.family, entry.name)
    model = TaskModel(loaded, EagerEngine(loaded.model, resolve_device(place), torch.float32))
    return Blip(entry.name, dict.fromkeys(SERVED_TASKS[entry.task], lambda: model))
