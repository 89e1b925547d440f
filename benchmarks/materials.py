"""Inputs of the benchmarks: models of the published shapes with random weights, images and texts.

Models are saved as hub folders, which `transformers` loads too, so all contestants have identical weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from openblip.checkpoints import write
from openblip.model.build import build_model
from openblip.model.config import ModelConfig, ModelKind, preset
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer

SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}  # ids as in bert-base-uncased
TASKS: tuple[ModelKind, ...] = ("caption", "vqa", "retrieval")
# Large enough that outputs depend on the input, small enough that int8 and bf16 stay meaningful.
WEIGHTS_STD = 0.04
WORDS = 10  # in a question or a text to match


@dataclass(frozen=True)
class Scale:
    """Sizes of models and inputs: `base` is the published size, `toy` tests the benchmarks themselves."""

    name: Literal["base", "toy"]
    words: int  # vocabulary size without [DEC] and [ENC]
    photo: tuple[int, int] = (640, 480)
    medium_photo: tuple[int, int] = (1152, 896)
    large_photo: tuple[int, int] = (4000, 3000)
    new_tokens: int = 16
    answer_tokens: int = 4

    def config(self, task: ModelKind) -> ModelConfig:
        """Return the configuration of a task's model, without dropout, so that training can be compared too."""
        config = preset(task)
        config = replace(config, text=replace(config.text, dropout=0.0, attention_dropout=0.0))
        if self.name == "base":
            return config
        vision = replace(config.vision, image_size=32, width=32, depth=2, heads=4, mlp_width=64)
        text = replace(
            config.text, vocab_size=self.words + 2, width=32, depth=2, heads=4, mlp_width=64, max_positions=64,
            memory_width=32, dec_id=self.words, enc_id=self.words + 1,
        )  # fmt: skip
        return replace(config, vision=vision, text=text, embed_width=16)


BASE = Scale("base", words=30522)
TOY = Scale(
    "toy", words=598, photo=(48, 36), medium_photo=(64, 48), large_photo=(160, 120), new_tokens=4, answer_tokens=2
)  # fmt: skip
SCALES: dict[str, Scale] = {scale.name: scale for scale in (BASE, TOY)}


@dataclass(frozen=True)
class Materials:
    """Models and inputs in a folder, created on first use with fixed seeds."""

    folder: Path
    scale: Scale

    def model(self, task: ModelKind) -> Path:
        """Return the hub folder of a task's model."""
        folder = self.folder / self.scale.name / task
        if not (folder / "config.json").is_file():
            config = self.scale.config(task)
            model = build_model(config)
            _draw_weights(model, seed=TASKS.index(task))
            tokenizer = Tokenizer.from_vocab(self._vocabulary())
            write.save(model, folder, tokenizer=tokenizer, image=ImageSettings(config.vision.image_size), prompt="")
        return folder

    def photos(self, count: int) -> list[Image.Image]:
        """Return decoded images."""
        return [draw_image(seed, *self.scale.photo) for seed in range(count)]

    def photo_files(self, count: int) -> list[Path]:
        """Return JPEG files of a common size."""
        return self._files("photos", count, self.scale.photo)

    def large_files(self, count: int) -> list[Path]:
        """Return JPEG files as a camera writes them: 12 megapixels at base size."""
        return self._files("large", count, self.scale.large_photo)

    def mixed_files(self, count: int) -> list[Path]:
        """Return JPEG files of alternately 1 and 12 megapixels, at base size, in a folder without other files."""
        folder = self.folder / self.scale.name / f"mixed-{count}"
        folder.mkdir(parents=True, exist_ok=True)
        medium = self._files("medium", (count + 1) // 2, self.scale.medium_photo)
        large = self.large_files(count // 2)
        paths = [folder / f"{number:03}.jpg" for number in range(count)]
        for number, path in enumerate(paths):
            if not path.is_file():
                path.write_bytes((large if number % 2 else medium)[number // 2].read_bytes())
        return paths

    def texts(self, count: int) -> list[str]:
        """Return questions or texts of equal length, because `transformers` does not mask shorter questions."""
        draws = np.random.default_rng(1).integers(104, self.scale.words, (count, WORDS))
        return [" ".join(_word(number) for number in row) for row in draws]

    def describe(self) -> dict[str, object]:
        """Return the scale, for the record."""
        return asdict(self.scale)

    def _vocabulary(self) -> Path:
        path = self.folder / self.scale.name / "vocab.txt"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            words = (SPECIAL.get(number) or _word(number) for number in range(self.scale.words))
            path.write_text("\n".join(words) + "\n", encoding="utf-8")
        return path

    def _files(self, name: str, count: int, size: tuple[int, int]) -> list[Path]:
        folder = self.folder / self.scale.name / name
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{number:03}.jpg" for number in range(count)]
        distinct = min(count, 8)  # drawing is slow; the other files are copies
        for number, path in enumerate(paths):
            if path.is_file():
                continue
            if number < distinct:
                draw_image(number, *size).save(path, quality=90)
            else:
                path.write_bytes(paths[number % distinct].read_bytes())
        return paths


def draw_image(seed: int, width: int, height: int) -> Image.Image:
    """Return an image of coarse color patches with fine grain, whose JPEG file is as large as that of a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    patches = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = random.integers(-12, 13, (height, width, 1), dtype=np.int16)
    return Image.fromarray((patches + grain).clip(0, 255).astype(np.uint8))


def _draw_weights(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=WEIGHTS_STD, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()


def _word(number: int) -> str:
    return f"w{number}"
