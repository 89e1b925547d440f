"""LoRA (Hu et al. 2021): every weight stays as it is, and some linear layers learn a small correction beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openblip.checkpoints.containers import SAFETENSORS, read_json, read_safetensors, write_safetensors
from openblip.errors import CheckpointError, ConfigError
from openblip.io import atomic
from openblip.training.config import LoraSettings
from openblip.training.settings import build

DESCRIPTION = "adapter.json"


class LoraLinear(nn.Linear):
    """x W' + b + scale * (x A') B', with A (r, in) and B (out, r); B begins at 0, and so does the correction."""

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
        return super().forward(x) + self.scale * F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain linear layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        correction = self.scale * (self.lora_b.double() @ self.lora_a.double())
        plain.weight = nn.Parameter((self.weight.double() + correction).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, settings: LoraSettings) -> list[str]:
    """Freeze a model and give its target layers corrections to learn, in place; the names of those layers."""
    targets = [name for name, module in model.named_modules() if _is_target(name, module, settings)]
    if not targets:
        raise ConfigError(f"no linear layer of this model is called {', '.join(settings.targets)}")
    for pattern in settings.also:
        if not any(fnmatch(name, pattern) for name, _ in model.named_parameters()):
            raise ConfigError(f"no parameter of this model is called {pattern!r} (lora.also)")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in settings.also))
    for name in targets:
        model.set_submodule(name, LoraLinear(_linear(model, name), settings))
    return targets


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the corrections into the weights, in place: a plain model again, with its plain names. The same model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merged())
    return model


def save_adapter(model: nn.Module, folder: Path, settings: LoraSettings, base: str) -> Path:
    """Write what was trained, the corrections and what ``also`` names, apart from the frozen ``base``."""
    trained = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    with atomic.replace_folder(folder, last=DESCRIPTION) as fresh:
        write_safetensors(fresh / SAFETENSORS, trained)
        described = {"base": base, **asdict(settings)}
        (fresh / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def load_adapter(model: nn.Module, folder: Path) -> LoraSettings:
    """Give a plain model the corrections in ``folder``, unmerged. It must be the base they were trained on."""
    described = read_json(folder / DESCRIPTION)
    described.pop("base", None)
    settings = build(LoraSettings, described)
    add_lora(model, settings)
    _load_trained(model, read_safetensors(folder / SAFETENSORS), folder)
    return settings


def _load_trained(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    state = model.state_dict()
    needed = {name for name, p in model.named_parameters() if p.requires_grad}
    fits = needed <= tensors.keys() and all(
        name in state and state[name].shape == t.shape for name, t in tensors.items()
    )
    if not fits:
        raise CheckpointError(f"{folder} holds an adapter for another model")
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _is_target(name: str, module: nn.Module, settings: LoraSettings) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in settings.targets


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module
