"""Construction of a network from its configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from openblip.model.config import ModelConfig
from openblip.model.text import TextTransformer
from openblip.model.two_tower import TwoTower
from openblip.model.vision import VisionTransformer
from openblip.tasks import TASKS


def build_model(config: ModelConfig, device: str | torch.device | None = None) -> nn.Module:
    """Return the network of `config.task` with fresh weights.

    Args:
        config: Sizes of the network.
        device: Device of the weights. `"meta"` gives shapes without memory.

    Returns:
        The network.
    """
    with torch.device(device or "cpu"):
        if config.task == "two_tower":
            return TwoTower(config)
        if config.task == "text":
            return TextTransformer(config.text, pooler=True)
        if config.task == "vision":
            return VisionTransformer(config.vision)
        network: Callable[[ModelConfig], nn.Module] = TASKS[config.task].model.resolve()
        return network(config)


def count_parameters(model: nn.Module) -> int:
    """Return the number of distinct parameters, without buffers, as papers and model tables count them."""
    return sum(parameter.numel() for parameter in model.parameters())
