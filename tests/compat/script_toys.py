"""What user scripts run on: one library by name, its toy checkpoints, photos, and a small dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

import openblip
from openblip.compat import transformers_api
from tests.compat.compat_toys import SIZE, loud, part, their_config
from tests.toys import VOCABULARY

Theirs: Any = transformers
PUBLISHED = (
    "BlipForConditionalGeneration",
    "BlipForQuestionAnswering",
    "BlipForImageTextRetrieval",
    "BlipModel",
)
TEXTS = ("a cat on a man", "a dog on a cat", "a man on a dog", "a man on a cat")


@dataclass(frozen=True)
class Library:
    """A library under its script's import: `from {name} import Blip...`.

    Attributes:
        name: "transformers" or "openblip".
        checkpoints: Folders of toy checkpoints by class name.
        folder: Empty folder of the script.
    """

    name: str
    checkpoints: dict[str, Path]
    folder: Path

    def __getattr__(self, name: str) -> Any:
        if self.name == "transformers":
            return getattr(Theirs, name)
        return getattr(openblip if hasattr(openblip, name) else transformers_api, name)

    def load(self, name: str = PUBLISHED[0], **options: Any) -> Any:
        """A toy model of a class, in evaluation mode."""
        return getattr(self, name).from_pretrained(self.checkpoints[name], **options).eval()

    @property
    def processor(self) -> Any:
        """The processor of the toy checkpoints."""
        return self.BlipProcessor.from_pretrained(self.checkpoints[PUBLISHED[0]])

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the toy checkpoints."""
        return self.processor.tokenizer


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Toy checkpoints of all published classes, with a processor, written by transformers."""
    tokenizer = Theirs.BertTokenizer(str(VOCABULARY), model_max_length=40)
    processor = Theirs.BlipProcessor(Theirs.BlipImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer)
    folders = {}
    for name in PUBLISHED:
        model = getattr(Theirs, name)(part(name, their_config(vocab=600, dec=598))).eval()
        loud(model, seed=1, scale=0.2)
        folders[name] = folder / name
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


def photos(count: int = 2) -> list[Image.Image]:
    """Photos of different sizes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30 + 4 * i, 40, 3), dtype=np.uint8)) for i in range(count)]


def batch(library: Library, count: int = 2, **texts: Any) -> dict[str, Tensor]:
    """Photos with texts, as a script's processor returns them."""
    inputs = library.processor(
        images=photos(count), text=list(TEXTS[:count]), padding="max_length", max_length=8, return_tensors="pt", **texts
    )
    return dict(inputs)


def labeled(library: Library, count: int = 2) -> dict[str, Tensor]:
    """A batch with captions as labels."""
    inputs = batch(library, count)
    return {**inputs, "labels": inputs["input_ids"].clone()}


class Captions(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Four photos with captions as labels."""

    def __init__(self, library: Library) -> None:
        inputs = labeled(library, 4)
        self.rows = [{name: values[i] for name, values in inputs.items()} for i in range(4)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def losses(model: Any, inputs: dict[str, Tensor], steps: int = 3, lr: float = 1e-2) -> list[float]:
    """Losses of a training loop as users write it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    values = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss))
    return values


def files(folder: Path) -> list[str]:
    """Names of the files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


Record = SimpleNamespace
