"""AdamW over the trainable parameters, in the groups of one published code or the other; its state by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openblip.errors import CheckpointError, ConfigError
from openblip.training.config import AdamWSettings
from openblip.training.shards import like, whole_state

Saved = Mapping[str, Mapping[str, Tensor]]


def adamw(module: nn.Module, settings: AdamWSettings) -> torch.optim.AdamW:
    """The optimizer of a module's trainable parameters; momentum copies and frozen weights are left out."""
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("nothing is left to train: every parameter is frozen")
    return torch.optim.AdamW(
        parameter_groups(trainable, settings),
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=all(p.device.type in ("cpu", "cuda") for p in trainable.values()),
    )


def parameter_groups(trainable: Mapping[str, Tensor], settings: AdamWSettings) -> list[dict[str, Any]]:
    """Parameters with their weight decay. Sharded and whole ones lie apart, as one fused update cannot take both."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in trainable.values():
        decays = settings.groups == "published" or parameter.ndim >= 2
        groups.setdefault((decays, isinstance(parameter, DTensor)), []).append(parameter)
    return [
        {"params": members, "weight_decay": settings.weight_decay if decays else 0.0}
        for (decays, _), members in groups.items()
    ]


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What the optimizer remembers, whole, by the names of the parameters. Every process must ask for it.

    A parameter that never had a gradient is there with nothing to remember: grounding's text encoder looks at no image,
    so its cross-attention has none.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    kept = {name: optimizer.state.get(p, {}) for name, p in module.named_parameters() if id(p) in trained}
    flat = whole_state({f"{key} {name}": value for name, state in kept.items() for key, value in state.items()})
    return {name: {key: flat[f"{key} {name}"].detach() for key in state} for name, state in kept.items()}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, saved: Saved) -> None:
    """Put back what :func:`optimizer_state` gave, in whatever groups and shards the parameters lie now."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = {names[id(parameter)] for parameter in members}
    if saved and (strangers := trained ^ saved.keys()):
        raise CheckpointError(
            f"the optimizer's state does not belong to these parameters: {len(strangers)} differ ({min(strangers)}); "
            "resume with the settings that the run began with"
        )
    for parameter in members:
        state = saved.get(names[id(parameter)], {})
        optimizer.state[parameter] = {
            key: like(value, parameter) if value.ndim else value.to(parameter.device) for key, value in state.items()
        }
