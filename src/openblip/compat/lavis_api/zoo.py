"""Models by architecture and type, with their processors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openblip import blip as facade
from openblip.checkpoints import published
from openblip.compat.lavis_api import models
from openblip.compat.lavis_api.processors import of_task
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
    """Architectures and their types; printed as a table, iterated as pairs."""

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
    """The published model of an architecture and type, or with the weights of a ``checkpoint`` file.

    It is in evaluation mode whatever ``is_eval`` says. Raises :class:`InputError` for names that are not in
    ``model_zoo``, :class:`UnsupportedTaskError` for ``blip_classification``, which has no published weights.
    """
    if name == "blip_classification":
        raise UnsupportedTaskError(
            "blip_classification has no published weights; for labels without training see classify"
        )
    if name not in _CLASSES:
        raise InputError(f"unknown architecture {name!r}; one of {', '.join(_CLASSES)}")
    if model_type not in model_zoo.model_zoo[name]:
        raise InputError(f"{name} has no type {model_type!r}; one of {', '.join(model_zoo.model_zoo[name])}")
    kind, task = _CLASSES[name]
    source = f"{name}/{model_type}" if checkpoint is None else checkpoint
    loaded = facade.load(source, task=task, device=str(device))
    return kind(loaded.pipeline("retrieval" if task == "pretrain" else task).model)


def load_model_and_preprocess(
    name: str, model_type: str = "base", is_eval: bool = False, device: str | torch.device = "cpu"
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model as :func:`load_model` gives it, its image processors and its text processors.

    Processors are dicts with "train" and "eval": an image to a tensor (3, S, S), a text to a cleaned one.
    """
    model = load_model(name, model_type, is_eval, device)
    return (model, *of_task(model.part.config.task, model.part.image_settings))
