"""Memory and speed: recomputed activations and compiled layers. No parameter changes its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from openblip.errors import ConfigError
from openblip.model.base import ImageTextModel
from openblip.model.text import TextLayer
from openblip.model.vision import Block


def recompute_vision(model: ImageTextModel, blocks: int) -> None:
    """Compute the activations of the image encoder's last blocks again in the backward pass, instead of storing them.

    As published, attention and MLP of a block are wrapped separately, so that only the values between them are stored.

    Args:
        model: The model; it is modified in place.
        blocks: Number of blocks.

    Raises:
        ConfigError: If the image encoder has fewer blocks.
    """
    layers = cast("list[Block]", list(model.vision.blocks))
    if not 0 <= blocks <= len(layers):
        raise ConfigError(f"recompute_blocks must be between 0 and {len(layers)}, got {blocks}")
    for block in layers[len(layers) - blocks :]:
        for module in (block.attn, block.mlp):
            # Replace the forward of the instance: a wrapping module would change the names of parameters.
            cast(Any, module).forward = partial(checkpoint, module.forward, use_reentrant=False)


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compile every layer of the image encoder and of the text transformers.

    Layers of one kind share their code, so little is compiled; the code between them (draws of negatives, texts of
    varying length) stays in Python.

    Args:
        model: The model; it is modified in place.
        backend: Backend of `torch.compile`.

    Returns:
        The number of layers.
    """
    layers = [module for module in model.modules() if isinstance(module, Block | TextLayer)]
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the precision inside matrix products of fp32 tensors, for the time of a `with` block.

    Args:
        precision: "highest", "high" or "medium", as in `torch.set_float32_matmul_precision`.
    """
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)
