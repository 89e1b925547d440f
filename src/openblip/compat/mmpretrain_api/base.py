"""The base class of inferencers, and helpers for their inputs and drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from PIL import Image

from openblip.compat.mmpretrain_api.models import TASKS, Model, get_model, list_models
from openblip.drawing import add_lines
from openblip.errors import InputError
from openblip.pipelines.base import TaskModel, iter_chunks
from openblip.preprocess.image import load_image

Result: TypeAlias = dict[str, Any] | list[dict[str, Any]]


class DataSample:
    """A result with `return_datasamples=True`: fields as attributes.

    Args:
        **fields: The fields.
    """

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the field called `name`, or `default`.

        Args:
            name: Name of the field.
            default: Result if there is no such field.

        Returns:
            The field called `name`, or `default`.
        """
        return self.__dict__.get(name, default)

    def keys(self) -> list[str]:
        """Return the names of the fields.

        Returns:
            The names of the fields.
        """
        return list(self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields.

        Returns:
            All fields.
        """
        return dict(self.__dict__)

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"DataSample({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


class BaseInferencer:
    """One task of a model.

    Args:
        model: Published name, path or model.
        pretrained: Load the published weights, or the weights of a file.
        device: Device to run on; by default a GPU if there is one.
        **unknown: Settings of `mmpretrain`'s configuration files, which are rejected.

    Raises:
        CheckpointError: If there is no such model.
        UnsupportedTaskError: If the model does not support the task.
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
        self.task_model: TaskModel = self.model.task_model(TASKS[self.task])
        self.tokenizer = self.task_model.tokenizer

    def _call(
        self, inputs: Sequence[Any], return_datasamples: bool, batch_size: int, options: Mapping[str, Any]
    ) -> list[Any]:
        """Return the results of all inputs; show or save drawings as `options` require."""
        unknown = options.keys() - self.visual
        if unknown:
            raise InputError(f"unknown argument {', '.join(sorted(unknown))}; use {', '.join(sorted(self.visual))}")
        samples = []
        for batch in iter_chunks(inputs, batch_size):
            samples += self._infer(batch)
        self._visualize(inputs, samples, options)
        topk = {"topk": options["topk"]} if "topk" in options else {}
        return samples if return_datasamples else [self._format_result(sample, **topk) for sample in samples]

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        """Return the samples of a batch of inputs.

        Returns:
            The samples of a batch of inputs.
        """
        raise NotImplementedError

    def _format_result(self, sample: DataSample) -> Result:
        """Return the result of a sample with `return_datasamples=False`.

        Returns:
            The result of a sample with `return_datasamples=False`.
        """
        raise NotImplementedError

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        """Return a drawing of an input with its result.

        Args:
            entry: The input.
            sample: Its result.
            options: Visual options of the call.

        Returns:
            A drawing of an input with its result.
        """
        raise NotImplementedError

    def _visualize(self, inputs: Sequence[Any], samples: Sequence[DataSample], options: Mapping[str, Any]) -> None:
        folder = options.get("show_dir")
        if folder is None and not options.get("show"):
            return
        for index, (entry, sample) in enumerate(zip(inputs, samples, strict=True)):
            drawing = self._draw(entry, sample, options)
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
                drawing.save(Path(folder) / f"{self._drawing_name(entry, index)}.png")
            if options.get("show"):
                drawing.show()

    def _drawing_name(self, entry: Any, index: int) -> str:
        image = entry["img"] if isinstance(entry, Mapping) else entry
        return Path(image).stem if isinstance(image, str | Path) else str(index)

    @classmethod
    def list_models(cls, pattern: str | None = None) -> list[str]:
        """Return the names of published models for this task.

        Args:
            pattern: Wildcard pattern that names must start with.

        Returns:
            The names of published models for this task.
        """
        return list_models(pattern, task=cls.task)


def load_bgr_image(image: Any) -> Image.Image:
    """Load an image.

    Args:
        image: Path, URL, PIL image, or array: (H, W, 3) with the channels blue, green, red as in mmcv, (H, W, 4) with
            alpha as the last channel, or gray (H, W).

    Returns:
        The image.

    Raises:
        ImageError: If the image cannot be read.
    """
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4):
        image = np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])
    return load_image(image)


def list_inputs(inputs: Any) -> list[Any]:
    """Return inputs as a list. A folder stands for the files in it, sorted by name.

    Args:
        inputs: An input, a list of inputs, or a folder.

    Returns:
        Inputs as a list.
    """
    if isinstance(inputs, str | Path) and "://" not in str(inputs) and Path(inputs).is_dir():
        return [str(path) for path in sorted(Path(inputs).iterdir()) if path.is_file()]
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def pair_inputs(images: Any, texts: Any, name: str) -> list[dict[str, Any]]:
    """Return a dict with `img` and `name` for each image and its text.

    Args:
        images: One image, or a list of images.
        texts: One text, or a list of texts.
        name: Key of the text.

    Returns:
        A dict with `img` and `name` for each image and its text.

    Raises:
        InputError: If there is not one text for each image.
    """
    if not isinstance(images, list | tuple):
        images, texts = [images], [texts]
    if isinstance(texts, str) or len(images) != len(texts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"each image needs one {name}: a string for one image, a list of strings for a list of images")
    return [{"img": image, name: text} for image, text in zip(images, texts, strict=True)]


def resize_drawing(image: Image.Image, options: Mapping[str, Any]) -> tuple[Image.Image, float]:
    """Return the image with its short edge as long as the option `resize`, if set, and the scale factor.

    Args:
        image: The image.
        options: Visual options of the call.

    Returns:
        The image with its short edge as long as the option `resize`, if set, and the scale factor.
    """
    short_edge = options.get("resize")
    if not short_edge:
        return image, 1.0
    factor = short_edge / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor))), factor


def draw_lines(image: Image.Image, lines: Sequence[str], options: Mapping[str, Any]) -> Image.Image:
    """Return the image with lines of text.

    Args:
        image: The image.
        lines: The lines.
        options: Visual options of the call.

    Returns:
        The image with lines of text.
    """
    return add_lines(resize_drawing(image, options)[0], lines)
