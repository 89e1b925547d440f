"""From a configuration to its model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.config import ModelConfig, ModelKind
from openblip.model.grounder import Grounder
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.model.text import TextTransformer
from openblip.model.two_tower import TwoTower
from openblip.model.vision import VisionTransformer

_BUILDERS: dict[ModelKind, Callable[[ModelConfig], nn.Module]] = {
    "caption": Captioner,
    "vqa": Answerer,
    "retrieval": Matcher,
    "nlvr": Comparer,
    "grounding": Grounder,
    "pretrain": Pretrainer,
    "two_tower": TwoTower,
    "text": lambda config: TextTransformer(config.text, pooler=True),
    "vision": lambda config: VisionTransformer(config.vision),
}


def build(config: ModelConfig, device: str | torch.device | None = None) -> nn.Module:
    """The model of ``config.task`` with fresh weights; ``device="meta"`` gives shapes without memory."""
    with torch.device(device or "cpu"):
        return _BUILDERS[config.task](config)


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters, buffers left out: the figure that papers and model tables print."""
    return sum(parameter.numel() for parameter in model.parameters())
