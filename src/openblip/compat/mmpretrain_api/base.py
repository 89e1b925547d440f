"""What all inferencers share: models by name, inputs to lists, results as dicts or samples, pictures to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from openblip.compat.mmpretrain_api.models import TASKS, Model, get_model, list_models
from openblip.drawing import titled
from openblip.errors import InputError
from openblip.pipelines.base import TaskModel, iter_chunks
from openblip.preprocess.image import load_image


class DataSample:
    """Fields by attribute or by ``get``: what ``return_datasamples=True`` gives."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or ``default`` if there is none of that name."""
        return self.__dict__.get(name, default)

    def keys(self) -> list[str]:
        """The names of the fields."""
        return list(self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dict(self.__dict__)

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"DataSample({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


class BaseInferencer:
    """One task of a model. ``model`` is a name, a :class:`Model` or a path; ``pretrained`` a file of weights for it.

    A subclass says how inputs are computed (:meth:`infer`), what a sample comes to (:meth:`result`) and how it is
    drawn (:meth:`draw`).
    """

    task: ClassVar[str]
    visual: ClassVar[frozenset[str]] = frozenset({"resize", "show", "show_dir", "wait_time"})

    def __init__(
        self,
        model: str | Path | Model,
        pretrained: bool | str | Path = True,
        device: str | torch.device | None = None,
        **unknown: Any,
    ) -> None:
        self.model = model if isinstance(model, Model) else get_model(model, pretrained, device, **unknown)
        self.part: TaskModel = self.model.part(TASKS[self.task])
        self.tokenizer = self.part.tokenizer

    def _call(
        self, inputs: Sequence[Any], return_datasamples: bool, batch_size: int, options: Mapping[str, Any]
    ) -> list[Any]:
        """All inputs, ``batch_size`` at a time; drawings are shown or written as ``options`` ask."""
        if unknown := options.keys() - self.visual:
            raise InputError(f"unknown argument {', '.join(sorted(unknown))}; one of {', '.join(sorted(self.visual))}")
        samples = [sample for chunk in iter_chunks(inputs, batch_size) for sample in self.infer(chunk)]
        self._look(inputs, samples, options)
        topk = {"topk": options["topk"]} if "topk" in options else {}
        return samples if return_datasamples else [self.result(sample, **topk) for sample in samples]

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        """The samples of a batch."""
        raise NotImplementedError

    def result(self, sample: DataSample) -> Any:
        """What is given back for a sample."""
        raise NotImplementedError

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        """The picture of an input with its result."""
        raise NotImplementedError

    def _look(self, inputs: Sequence[Any], samples: Sequence[DataSample], options: Mapping[str, Any]) -> None:
        folder = options.get("show_dir")
        if folder is None and not options.get("show"):
            return
        for number, (given, sample) in enumerate(zip(inputs, samples, strict=True)):
            drawn = self.draw(given, sample, options)
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
                drawn.save(Path(folder) / f"{self._name(given, number)}.png")
            if options.get("show"):
                drawn.show()

    def _name(self, given: Any, number: int) -> str:
        image = given["img"] if isinstance(given, Mapping) else given
        return Path(image).stem if isinstance(image, str | Path) else str(number)

    @classmethod
    def list_models(cls, pattern: str | None = None) -> list[str]:
        """The published names for this task."""
        return list_models(pattern, task=cls.task)


def picture(image: Any) -> Image.Image:
    """A picture from a path or address, PIL, or an array, whose colours are blue, green, red as everywhere in mmcv.

    Arrays are (H, W, 3), (H, W, 4), whose last channel is alpha, or grey (H, W).
    """
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4):
        image = np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])
    return load_image(image)


def listed(inputs: Any) -> list[Any]:
    """Inputs as a list; a folder is the files in it, in the order of their names."""
    if isinstance(inputs, str | Path) and "://" not in str(inputs) and Path(inputs).is_dir():
        return [str(path) for path in sorted(Path(inputs).iterdir()) if path.is_file()]
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def paired(images: Any, texts: Any, name: str) -> list[dict[str, Any]]:
    """One image with its text, or as many of each."""
    if not isinstance(images, list | tuple):
        images, texts = [images], [texts]
    if isinstance(texts, str) or len(images) != len(texts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"give one {name} for each image: a string for one, a list of strings for a list")
    return [{"img": image, name: text} for image, text in zip(images, texts, strict=True)]


def resized(image: Image.Image, options: Mapping[str, Any]) -> tuple[Image.Image, float]:
    """The picture with ``resize`` pixels on its short edge, if that is asked for, and the factor."""
    if not (short := options.get("resize")):
        return image, 1.0
    factor = short / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor))), factor


def lettered(image: Image.Image, lines: Sequence[str], options: Mapping[str, Any]) -> Image.Image:
    """The picture over lines of text."""
    return titled(resized(image, options)[0], lines)
