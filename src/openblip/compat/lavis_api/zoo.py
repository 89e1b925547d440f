"""Models by architecture and type, and their processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openblip import blip as facade
from openblip.checkpoints import published
from openblip.compat.lavis_api import models
from openblip.compat.lavis_api.processors import PROCESSORS, Processor, Processors, load_processor, task_processors
from openblip.errors import InputError, UnsupportedTaskError

_CLASSES: Mapping[str, type[models.BaseModel]] = {
    model_class.architecture: model_class
    for model_class in (
        models.BlipCaption,
        models.BlipFeatureExtractor,
        models.BlipITM,
        models.BlipNLVR,
        models.BlipPretrain,
        models.BlipRetrieval,
        models.BlipVQA,
    )
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
    """Load a published model.

    Args:
        name: Architecture; see `model_zoo`.
        model_type: Type of the architecture.
        is_eval: Evaluation mode; otherwise training mode, in which losses use dropout. Predictions never do.
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
    model_class = _CLASSES[name]
    task = model_class.task
    source = f"{name}/{model_type}" if checkpoint is None else checkpoint
    blip = facade.load(source, task=task, device=str(device))
    model = model_class(blip.pipeline("retrieval" if task == "pretrain" else task).model)
    return model if is_eval else model.train()


def load_model_and_preprocess(
    name: str, model_type: str = "base", is_eval: bool = False, device: str | torch.device = "cpu"
) -> tuple[Any, Processors, Processors]:
    """Load a published model and its processors.

    Args:
        name: Architecture; see `model_zoo`.
        model_type: Type of the architecture.
        is_eval: Evaluation mode; otherwise training mode, in which losses use dropout. Predictions never do.
        device: Device to run on.

    Returns:
        The model, its image processors and its text processors. Processors are dicts with "train" and "eval".

    Raises:
        InputError: If there is no such architecture or type.
        UnsupportedTaskError: For `blip_classification`, whose weights were not published.
    """
    model = load_model(name, model_type, is_eval, device)
    return (model, *task_processors(model.task_model.config.task, model.task_model.image_settings))


def load_preprocess(config: Mapping[str, Any]) -> tuple[Processors, Processors]:
    """Return the processors that a configuration describes.

    Args:
        config: `vis_processor` and `text_processor`, each with `train` and `eval`: the `name` of a processor, and its
            options.

    Returns:
        Image processors and text processors, as dicts with "train" and "eval".
    """

    def build(name: str) -> Processors:
        entries = config.get(name) or {}
        processors: Processors = {}
        for split in ("train", "eval"):
            options = dict(entries.get(split) or {"name": "base_processor"})
            kind = options.pop("name")
            processors[split] = _unchanged if kind == "base_processor" else load_processor(kind, options)
        return processors

    return build("vis_processor"), build("text_processor")


def _unchanged(item: Any) -> Any:
    return item


class Registry:
    """Classes by name, as `lavis.common.registry`."""

    @staticmethod
    def get_model_class(name: str) -> type[models.BaseModel] | None:
        """Return the class of an architecture, or `None`.

        Args:
            name: Architecture; see `model_zoo`.

        Returns:
            The class.
        """
        return _CLASSES.get(name)

    @staticmethod
    def get_processor_class(name: str) -> Callable[..., Processor] | None:
        """Return the class of a processor, or `None`.

        Args:
            name: Name of the processor, such as "blip_caption".

        Returns:
            The class.
        """
        return PROCESSORS.get(name)

    @staticmethod
    def list_models() -> list[str]:
        """Return the names of all architectures.

        Returns:
            The names.
        """
        return sorted(_CLASSES)


registry = Registry()
