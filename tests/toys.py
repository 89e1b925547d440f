"""Toy models with random weights loud enough that different inputs give different outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from openblip.checkpoints import write
from openblip.checkpoints.folder import write_bundle
from openblip.model.build import build_model
from openblip.model.config import ModelConfig, ModelKind, StemConfig, TextConfig, VisionConfig
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TaskName

VOCABULARY = Path(__file__).parent / "golden" / "vocab.txt"
SIZE = 32


def toy_tokenizer() -> Tokenizer:
    """The 598 pieces of the golden vocabulary, [DEC] 598 and [ENC] 599 after them."""
    return Tokenizer.from_vocab(VOCABULARY)


TOY_STEM = StemConfig(
    first_width=8,
    head_width=24,
    stages=(
        (1, 3, 1, 1, 8), (2, 3, 2, 2, 8), (1, 5, 2, 2, 16), (1, 3, 2, 2, 16), (1, 5, 1, 2, 16), (1, 5, 2, 2, 16),
        (1, 3, 1, 2, 40),
    ),
)  # fmt: skip


def toy_config(task: ModelKind, *, image_size: int = SIZE) -> ModelConfig:
    """Two layers of width 32 in each tower."""
    return ModelConfig(
        task=task,
        vision=VisionConfig(image_size=image_size, width=32, depth=2, heads=4, mlp_width=64),
        text=TextConfig(
            vocab_size=600, width=32, depth=2, heads=4, mlp_width=64, max_positions=64, memory_width=32,
            dropout=0.0, attention_dropout=0.0, cls_id=2, sep_id=3, dec_id=598, enc_id=599,
        ),
        embed_width=16, box_bins=40, box_start_id=500,
    )  # fmt: skip


def toy_model(task: ModelKind, *, seed: int = 0, image_size: int = SIZE) -> nn.Module:
    """A model whose weights are drawn wide."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(toy_config(task, image_size=image_size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return model


def toy_hybrid(task: ModelKind, *, seed: int = 0, text_depth: int = 2) -> nn.Module:
    """A hybrid ViT over a grid of 2 x 2 cells, whose convolutions are as loud as its other weights."""
    config = toy_config(task)
    vision = replace(config.vision, image_size=64, patch_size=32, stem=TOY_STEM)
    text = replace(config.text, depth=text_depth)
    torch.manual_seed(seed)
    model = build_model(replace(config, vision=vision, text=text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape) * max(0.25, 1.4 * fan_in**-0.5))
    return model


def toy_bundle(folder: Path, tasks: Sequence[TaskName]) -> Path:
    """Write a bundle with a toy model for each task, and return its folder."""
    for task in tasks:
        prompt = "a picture of " if task == "caption" else None
        image = ImageSettings(size=SIZE)
        write.save(toy_model(task), folder / task, tokenizer=toy_tokenizer(), image=image, prompt=prompt)
    write_bundle(folder, {task: folder / task for task in tasks})
    return folder


def toy_image(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Coarse coloured noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)
