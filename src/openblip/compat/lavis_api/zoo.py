"""Models by architecture and type, and their processors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openblip import blip as facade
from openblip.checkpoints import published
from openblip.compat.lavis_api import models
from openblip.compat.lavis_api.processors import Processors, task_processors
from openblip.errors import InputError, UnsupportedTaskError
from openblip.tasks import TaskName

_CLASSES: Mapping[str, tuple[type[models.BaseModel], TaskName]] = {
    "blip_caption": (models.BlipCaption, "caption"),
    "blip_feature_extractor": (models.BlipFeatureExtractor, "pretrain"),
    "blip_image_text_matching": (models.BlipITM, "retrieval"),
    "blip_nlvr": (models.BlipNLVR, "nlvr"),
    "blip_pretrain": (models.BlipPretrain, "pretrain"),
    "blip_retrieval": (models.BlipRetrieval, "retrieval"),
    "blip_vqa": (models.BlipVQA, "vqa"),
}


class ModelZoo:
    """The published models: architectures and their types. It prints as a table and yields pairs."""

    def __init__(self) -> None:
        self.model_zoo: dict[str, list[str]] = {name: [] for name in _CLASSES}
        for entry in published.PUBLISHED:
            for name, kind in entry.lavis:
                self.model_zoo[name].append(kind)
        for kinds in self.model_zoo.values():
            kinds.sort(key=lambda kind: not kind.startswith("base"))

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self.model_zoo.items())

    def __len__(self) -> int:
        return sum(map(len, self.model_zoo.values()))

    def __repr__(self) -> str:
        line = "=" * 50
        rows = [f"{name:<30} {', '.join(kinds)}" for name, kinds in self]
        return "\n".join([line, f"{'Architectures':<30} Types", line, *rows])


model_zoo = ModelZoo()


def load_model(
    name: str,
    model_type: str = "base",
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
) -> Any:
    """Load a published model, in evaluation mode.

    Args:
        name: Architecture; see `model_zoo`.
        model_type: Type of the architecture.
        is_eval: Ignored; models are always in evaluation mode.
        device: Device to run on.
        checkpoint: File with other weights of this architecture.

    Returns:
        The model.

    Raises:
        InputError: If there is no such architecture or type.
        UnsupportedTaskError: For `blip_classification`, whose weights were not published.
    """
    if name == "blip_classification":
        raise UnsupportedTaskError(
            "blip_classification has no published weights; to classify without training, use Blip.classify"
        )
    if name not in _CLASSES:
        raise InputError(f"architecture must be one of {', '.join(_CLASSES)}, got {name!r}")
    if model_type not in model_zoo.model_zoo[name]:
        raise InputError(f"type of {name} must be one of {', '.join(model_zoo.model_zoo[name])}, got {model_type!r}")
    model_class, task = _CLASSES[name]
    source = f"{name}/{model_type}" if checkpoint is None else checkpoint
    blip = facade.load(source, task=task, device=str(device))
    return model_class(blip.pipeline("retrieval" if task == "pretrain" else task).model)


def load_model_and_preprocess(
    name: str, model_type: str = "base", is_eval: bool = False, device: str | torch.device = "cpu"
) -> tuple[Any, Processors, Processors]:
    """Load a published model and its processors.

    Args:
        name: Architecture; see `model_zoo`.
        model_type: Type of the architecture.
        is_eval: Ignored; models are always in evaluation mode.
        device: Device to run on.

    Returns:
        The model, its image processors and its text processors. Processors are dicts with "train" and "eval".

    Raises:
        InputError: If there is no such architecture or type.
        UnsupportedTaskError: For `blip_classification`, whose weights were not published.
    """
    model = load_model(name, model_type, is_eval, device)
    return (model, *task_processors(model.task_model.config.task, model.task_model.image_settings))
