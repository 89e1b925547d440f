"""LoRA (Hu et al. 2021): the weights stay frozen, and some linear layers learn a low-rank addition."""

from __future__ import annotations

import math
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openblip.checkpoints.adapter import LoraPair, write_adapter
from openblip.errors import ConfigError
from openblip.training.config.optim import LoraSettings


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank addition: x W' + bias + scale * (x A') B', with A (r, in) and B (out, r).

    B starts at 0, so the layer starts as the linear layer it replaces.

    Args:
        linear: The layer to replace.
        settings: Rank, scale and dropout.
    """

    def __init__(self, linear: nn.Linear, settings: LoraSettings) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Parameter(linear.weight.new_empty(settings.r, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, settings.r))
        self.scale = settings.scale
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer with its adapter."""
        return super().forward(x) + self.scale * F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return a plain linear layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        addition = self.scale * (self.lora_b.double() @ self.lora_a.double())
        linear.weight = nn.Parameter((self.weight.double() + addition).to(self.weight.dtype))
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, settings: LoraSettings) -> list[str]:
    """Freeze a model and add adapters to its target layers, in place.

    Args:
        model: The model.
        settings: Target layers, and modules to train in full.

    Returns:
        The names of the adapted layers.

    Raises:
        ConfigError: If a target or a module does not exist.
    """
    trained = set()
    for pattern in settings.modules_to_save:
        names = {name for name, _ in model.named_parameters() if _is_inside(name, pattern)}
        if not names:
            raise ConfigError(f"lora.modules_to_save must name modules of the model, got {pattern!r}")
        trained |= names
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in settings.target_modules
        and f"{name}.weight" not in trained
    ]
    if not targets:
        names_in_words = ", ".join(settings.target_modules)
        raise ConfigError(f"lora.target_modules must name linear layers of the model, got {names_in_words}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for name in targets:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, LoraLinear(linear, settings))
    return targets


def _is_inside(parameter: str, pattern: str) -> bool:
    """Return whether a parameter, or a module that contains it, matches a pattern."""
    parts = parameter.split(".")
    return any(fnmatch(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def merge_lora(model: nn.Module) -> nn.Module:
    """Merge the adapters into the weights, in place; the model gets its plain names back.

    Args:
        model: A model with adapters.

    Returns:
        The same model.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merge())
    return model


def save_adapter(model: nn.Module, folder: Path, settings: LoraSettings, base: str) -> Path:
    """Write the adapters, and the modules trained in full, in the format of PEFT.

    `openblip.load`, `openblip convert` and the `start` of a recipe accept the folder, and so does
    `peft.PeftModel.from_pretrained`.

    Args:
        model: A model with adapters.
        folder: Folder to create, or whose files to replace.
        settings: The settings that `add_lora` had.
        base: Name or path of the model that the adapters were trained on.

    Returns:
        The folder.
    """
    pairs: dict[str, LoraPair] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            pairs[name] = LoraPair(module.lora_a, module.lora_b, module.scale)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora_" not in name]
    if Path(base).exists():
        base = str(Path(base).absolute())
    return write_adapter(
        folder,
        model,
        pairs,
        trained,
        base=base,
        rank=settings.r,
        alpha=settings.effective_alpha,
        dropout=settings.dropout,
    )
