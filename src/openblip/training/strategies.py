"""How the objective is spread over processes: one process, replicas (DDP) or shards (FSDP2)."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from openblip.errors import CheckpointError, ConfigError
from openblip.model.text import TextLayer
from openblip.model.vision import Block
from openblip.training.config.run import Strategy
from openblip.training.momentum import MomentumTwin
from openblip.training.objectives.base import Objective
from openblip.training.processes import ProcessGroupInfo
from openblip.training.sharding import shard_like

AnyObjective = Objective[Any, Any, Any, Any]
Losses = dict[str, Tensor]

# Freeing a DDP module waits for gloo's threads while it holds the interpreter lock, and they may wait for that lock to
# free a tensor: now and then a process hung after its work. So the modules live until the process ends.
_DDP_MODULES: list[DistributedDataParallel] = []


class ParallelStrategy(ABC):
    """An objective, and the way its weights and gradients are spread over processes.

    Attributes:
        objective: The objective in training.
        group: This process and its group.
    """

    def __init__(self, objective: AnyObjective, group: ProcessGroupInfo) -> None:
        self.objective = objective
        self.group = group

    @abstractmethod
    def __call__(self, batch: object, **arguments: float) -> Losses:
        """Return the losses of one batch."""

    @abstractmethod
    def accumulation(self, is_last_batch: bool) -> AbstractContextManager[None]:
        """Return a context for forward and backward; gradients are averaged in the last batch of a step only."""

    @abstractmethod
    def finish_backward(self) -> None:
        """Complete the gradients after the last backward of a step."""

    @abstractmethod
    def full_state(self) -> dict[str, Tensor]:
        """Return the full weights and buffers of the objective on the main process. Every process must call it."""

    @abstractmethod
    def full_model(self) -> AbstractContextManager[nn.Module]:
        """Return a context with the full model in evaluation mode.

        Every process must enter it; on other processes than the main one the model may be empty.
        """

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the objective from full tensors, which every process holds.

        Raises:
            CheckpointError: If names or shapes differ.
        """
        state = self.objective.state_dict()
        if differing := state.keys() ^ tensors.keys():
            raise CheckpointError(
                f"the checkpoint is of another model: {len(differing)} tensors differ ({min(differing)})"
            )
        for name, tensor in tensors.items():
            if state[name].shape != tensor.shape:
                shapes = f"{tuple(state[name].shape)}, got {tuple(tensor.shape)}"
                raise CheckpointError(f"the checkpoint is of another model: {name} must have the shape {shapes}")
            state[name].copy_(shard_like(tensor, state[name]))


class SingleProcess(ParallelStrategy):
    """The objective in one process."""

    def __call__(self, batch: object, **arguments: float) -> Losses:
        return cast(Losses, self.objective(batch, **arguments))

    @contextmanager
    def accumulation(self, is_last_batch: bool) -> Iterator[None]:
        """Return a context for forward and backward."""
        yield

    def finish_backward(self) -> None:
        """Complete the gradients after the last backward of a step; nothing to do in a single process."""

    def full_state(self) -> dict[str, Tensor]:
        """Return the full weights and buffers on the main process."""
        return dict(self.objective.state_dict())

    @contextmanager
    def full_model(self) -> Iterator[nn.Module]:
        """Yield the full model in evaluation mode."""
        training, model = self.objective.training, self.objective.model
        model.eval()
        try:
            yield model
        finally:
            self.objective.train(training)


class DDP(SingleProcess):
    """A replica of the objective in each process; gradients are averaged."""

    def __init__(self, objective: AnyObjective, group: ProcessGroupInfo) -> None:
        super().__init__(objective, group)
        broadcast_state(objective)
        with warnings.catch_warnings():
            # Newer versions of PyTorch have another name for this option, which older ones lack.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.module = DistributedDataParallel(
                objective,
                device_ids=[group.device.index] if group.device.type == "cuda" else None,
                broadcast_buffers=False,  # queues are equal in all processes, because they take gathered features
                gradient_as_bucket_view=True,
                find_unused_parameters=objective.has_unused_parameters,
            )
        _DDP_MODULES.append(self.module)

    def __call__(self, batch: object, **arguments: float) -> Losses:
        return cast(Losses, self.module(batch, **arguments))

    @contextmanager
    def accumulation(self, is_last_batch: bool) -> Iterator[None]:
        """Return a context that averages gradients in the last batch of a step only."""
        if is_last_batch:
            yield
            return
        with self.module.no_sync():
            yield


class FSDP(ParallelStrategy):
    """Weights, gradients and optimizer state in shards, one unit per layer; gradients are averaged.

    Layers are units because each runs inside its own `forward` (or `keys_values`); everything else belongs to the
    objective, whose `forward` contains the complete step. Two parts need care. Scalars cannot be sharded, so the
    temperature stays full and its gradient is averaged here. And the momentum twin moves before the forward, when its
    weights and the model's are sharded alike; the weights do not change in between.
    """

    def __init__(self, objective: AnyObjective, group: ProcessGroupInfo) -> None:
        super().__init__(objective, group)
        broadcast_state(objective)
        self.meta_model = copy.deepcopy(cast(nn.Module, objective.model)).to("meta").eval()
        mesh = init_device_mesh(group.device.type, (group.world_size,))
        self.scalars = [parameter for parameter in objective.parameters() if parameter.ndim == 0]
        for module in list(objective.modules()):
            if isinstance(module, Block | TextLayer):
                fully_shard(module, mesh=mesh)
                if isinstance(module, TextLayer):
                    register_fsdp_forward_method(module, "project_keys_values")
        fully_shard(objective, mesh=mesh, ignored_params=set(self.scalars))
        self.root = cast(FSDPModule, objective)
        twin = getattr(objective, "twin", None)
        self.twin = twin if isinstance(twin, MomentumTwin) else None
        if self.twin is not None:
            self.twin.moved_by_strategy = True
        # Keys and values are views; nothing writes into them, which is the reason for this warning.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

    def __call__(self, batch: object, **arguments: float) -> Losses:
        if self.twin is not None and self.objective.training:
            self.twin.move(self.objective.model)
        return cast(Losses, self.objective(batch, **arguments))

    @contextmanager
    def accumulation(self, is_last_batch: bool) -> Iterator[None]:
        """Return a context that averages gradients in the last batch of a step only."""
        self.root.set_requires_gradient_sync(is_last_batch)
        yield

    def finish_backward(self) -> None:
        """Average the gradients of scalars."""
        for scalar in self.scalars:
            if scalar.grad is not None:
                scalar.grad = self.group.mean(scalar.grad)

    def full_state(self) -> dict[str, Tensor]:
        """Return the full weights and buffers on the main process."""
        return self._gather(self.objective)

    @contextmanager
    def full_model(self) -> Iterator[nn.Module]:
        """Yield the full model in evaluation mode."""
        model = copy.deepcopy(self.meta_model)
        state = self._gather(self.objective.model)
        if self.group.is_main:
            tensors = {name: tensor.detach().to(self.group.device, copy=True) for name, tensor in state.items()}
            model.load_state_dict(tensors, assign=True)
        yield model

    def _gather(self, module: nn.Module) -> dict[str, Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)  # offloaded: on the main process only
        return cast("dict[str, Tensor]", get_model_state_dict(module, options=options))


def build_strategy(objective: AnyObjective, group: ProcessGroupInfo, strategy: Strategy = "ddp") -> ParallelStrategy:
    """Spread an objective over the processes of a group.

    Args:
        objective: The objective to train.
        group: This process and its group.
        strategy: "ddp" or "fsdp"; without effect in a single process.

    Returns:
        The strategy.

    Raises:
        ConfigError: If the strategy is unknown.
    """
    if strategy not in ("ddp", "fsdp"):
        raise ConfigError(f"strategy must be ddp or fsdp, got {strategy!r}")
    if group.world_size == 1:
        return SingleProcess(objective, group)
    return DDP(objective, group) if strategy == "ddp" else FSDP(objective, group)


@torch.no_grad()
def broadcast_state(module: nn.Module) -> None:
    """Copy the main process's weights and buffers, including queues, to every process."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
