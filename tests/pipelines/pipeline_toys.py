"""Toy images and texts, comparison of results, and models without a pipeline around them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import openblip
from openblip import Blip, EncodedImage
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.tasks import TaskName
from tests.checkpoints.checkpoint_toys import recorded
from tests.conftest import GOLDEN
from tests.toys import SIZE, toy_image

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "grounding", "nlvr")
IMAGES = [toy_image(seed, 40 + 3 * seed, 30) for seed in range(5)]
RIGHT_IMAGES = IMAGES[::-1]
TEXTS = ["a man", "the dog on the left, near the train", "cat", "people sitting at a table in the street"]
QUESTIONS = ["what is it?", "is there a cat sleeping on the bed near the window?", "why", "how many dogs are there?"]
PROMPTS = ["a picture of ", "", "a cat sleeping on the", "a"]
LABELS = ["a cat", "dog", "a yellow school bus", "man", "train on the street"]
UNREADABLE: list[Any] = [b"", b"not a picture", "/no/such/file.jpg", Path("/no/such/file.png")]


def assert_close(a: Any, b: Any) -> None:
    """Compare results: equal texts and decisions, and numbers within the tolerance promised across batches."""
    assert type(a) is type(b)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name])
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            if field.name != "image":
                assert_close(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, float | np.ndarray):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    else:
        assert a == b


class ImageCounter:
    """Counts the images that pass through an image encoder."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self._hook = module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        self.count += len(inputs[0])

    def __enter__(self) -> ImageCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def count_images(blip: Blip, task: TaskName) -> ImageCounter:
    """Return a counter for the image encoder of a task."""
    return ImageCounter(blip.pipeline(task).model.module.vision)


def encode_directly(blip: Blip, task: TaskName, index: int) -> Tensor:
    """Return the states (1, M, D) of a toy image, by the network without a pipeline."""
    pixels = to_tensor(resize(load_image(IMAGES[index]), SIZE)[None], ImageSettings(size=SIZE))
    with torch.no_grad():
        return cast(Tensor, blip.pipeline(task).model.module.encode_image(pixels))


def load_golden(name: str, heads: int = 4) -> tuple[Blip, dict[str, Tensor], dict[str, Any]]:
    """Return a golden checkpoint, its recorded tensors and its recorded strings."""
    vocabulary = GOLDEN / ("vocab_grounding.txt" if name == "grounding" else "vocab.txt")
    config = {"text": {"heads": heads}, "vision": {"heads": 4}}
    blip = openblip.load(GOLDEN / f"{name}.weights.safetensors", config=config, tokenizer=vocabulary)
    return blip, recorded(name), json.loads((GOLDEN / f"{name}.json").read_text())


def encode_pixels(blip: Blip, pixels: Tensor, size: tuple[int, int] | None = None) -> list[EncodedImage]:
    """Return recorded pixels (I, 3, S, S), which have no image file, as encoded images."""
    engine = blip.pipeline(blip.tasks[0]).model.engine
    return [EncodedImage({id(engine): states}, size) for states in engine.encode_images(pixels)]
