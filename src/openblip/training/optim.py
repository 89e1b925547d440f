"""AdamW over the trainable parameters, grouped as in the published codes, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openblip.errors import CheckpointError, ConfigError
from openblip.training.config.optim import AdamWSettings
from openblip.training.sharding import full_tensor, shard_like

OptimizerState = Mapping[str, Mapping[str, Tensor]]


def build_adamw(module: nn.Module, settings: AdamWSettings) -> torch.optim.AdamW:
    """Return an optimizer of a module's trainable parameters, without momentum copies and frozen weights.

    Args:
        module: The module to train.
        settings: Options of AdamW.

    Raises:
        ConfigError: If every parameter is frozen.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("at least one parameter must be trainable; all are frozen")
    return torch.optim.AdamW(
        parameter_groups(trainable, settings),
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=all(p.device.type in ("cpu", "cuda") for p in trainable.values()),
    )


class BackwardUpdates:
    """Updates of parameters during the backward pass, which free their gradients: they never exist all at once.

    The parameters are the same, bit for bit, as after one update at the end: AdamW updates each number on its own, and
    a gradient is complete when nothing needs its parameter any more.

    Args:
        optimizer: The optimizer.
        num_bytes: Size of the gradients that are updated together.
    """

    def __init__(self, optimizer: torch.optim.AdamW, num_bytes: int = 2**25) -> None:
        self.optimizer = optimizer
        self.num_bytes = num_bytes
        self._waiting = 0

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Update all parameters whose gradients are completed in a `with` block."""
        self._waiting = 0
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        handles = [parameter.register_post_accumulate_grad_hook(self._add) for parameter in parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._update()

    def _add(self, parameter: Tensor) -> None:
        self._waiting += parameter.nbytes
        if self._waiting >= self.num_bytes:
            self._update()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._waiting = 0


def parameter_groups(trainable: Mapping[str, Tensor], settings: AdamWSettings) -> list[dict[str, list[Tensor] | float]]:
    """Group parameters by weight decay, and sharded ones apart, because one fused update cannot take both."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in trainable.values():
        decays = settings.groups == "published" or parameter.ndim >= 2
        groups.setdefault((decays, isinstance(parameter, DTensor)), []).append(parameter)
    return [
        {"params": members, "weight_decay": settings.weight_decay if decays else 0.0}
        for (decays, _), members in groups.items()
    ]


def full_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the full state of an optimizer by parameter name. Every process must call it.

    A parameter that never had a gradient has an empty state: grounding's text encoder attends to no image, so its
    cross-attention has none. `torch.distributed.checkpoint` would fill such states by a step of its own.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    states: dict[str, dict[str, Tensor]] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) in trained:
            state = optimizer.state.get(parameter, {})
            states[name] = {key: full_tensor(value).detach() for key, value in state.items()}
    return states


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, saved: OptimizerState) -> None:
    """Restore a state from `full_optimizer_state`, for any grouping and sharding of the parameters.

    Args:
        module: The module in training.
        optimizer: Its optimizer.
        saved: The full state.

    Raises:
        CheckpointError: If the state is of other parameters.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = {names[id(parameter)] for parameter in members}
    if saved and (differing := trained ^ saved.keys()):
        raise CheckpointError(
            f"the optimizer's state is of other parameters: {len(differing)} differ ({min(differing)}); resume with "
            "the settings that the run started with"
        )
    for parameter in members:
        state = saved.get(names[id(parameter)], {})
        optimizer.state[parameter] = {
            key: shard_like(value, parameter) if value.ndim else value.to(parameter.device)
            for key, value in state.items()
        }
