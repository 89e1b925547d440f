"""Training on several processes by PyTorch's own engine: what ``torchrun`` starts, replicas (DDP) and shards (FSDP).

A run is the same program on one process or on many. :func:`start` says where this process stands; a *parallel* holds
the objective and differs in how weights lie and gradients meet: :class:`Alone`, :class:`Replicated`, :class:`Sharded`.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from openblip.engine.device import resolve_device
from openblip.errors import ConfigError
from openblip.model.text import TextLayer
from openblip.model.vision import Block
from openblip.training.momentum import MomentumTwin
from openblip.training.objectives.gathering import Gather
from openblip.training.shards import whole_state

Strategy = Literal["ddp", "fsdp"]
Losses = dict[str, Tensor]

# Freeing one waits for gloo's threads while it holds the interpreter, and they may wait for the interpreter to free a
# tensor they were handed: now and then a process stood still for good after its work. So they live on to its end.
_KEPT: list[DistributedDataParallel] = []
T = TypeVar("T")


# --- where a process stands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """This process: the device it computes on, its number, and how many there are."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs, evaluates and saves."""
        return self.rank == 0

    @property
    def gather(self) -> Gather:
        """What objectives gather features with."""
        return Ranks(self.rank, self.size) if self.size > 1 else Gather()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def agree(self, value: T) -> T:
        """What the first process holds, on every process; it must be made of plain values."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collect(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def start(device: str = "auto", timeout_minutes: float = 120.0) -> Iterator[Place]:
    """Take the place that ``torchrun`` gave this process, or be alone.

    The others wait up to ``timeout_minutes`` while the first one evaluates or saves.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Place(resolve_device(device))
        return
    kind = resolve_device(device).type
    here = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(here)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    try:
        yield Place(here, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


# --- features of all processes ------------------------------------------------------------------------------------


class Ranks(Gather):
    """Gathers rows from every process; they may hold different numbers of them."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def __call__(self, rows: Tensor) -> Tensor:
        gathered: Tensor = _Gathered.apply(rows, self.rank, self.size)  # type: ignore[no-untyped-call]
        return gathered


class _Gathered(torch.autograd.Function):
    """Rows (B, ...) of all processes; backward, each gets what all losses together say about its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, size: int) -> Tensor:
        counts = _all_gather(torch.tensor([len(rows)], device=rows.device), size).tolist()
        ctx.mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        most = max(counts)
        padded = rows if len(rows) == most else torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
        everyone = _all_gather(padded, size)
        if min(counts) == most:
            return everyone
        return torch.cat([part[:count] for part, count in zip(torch.split(everyone, most), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.mine], None, None


def _all_gather(rows: Tensor, size: int) -> Tensor:
    kind = torch.uint8 if rows.dtype == torch.bool else rows.dtype  # not every backend takes truth values
    parts = [torch.empty_like(rows, dtype=kind) for _ in range(size)]
    dist.all_gather(parts, rows.to(kind).contiguous())
    return torch.cat(parts).to(rows.dtype)


# --- how weights lie and gradients meet ---------------------------------------------------------------------------


class Alone:
    """The objective on one process; the base of the two ways to share it among many."""

    def __init__(self, objective: nn.Module) -> None:
        self.objective = objective

    def __call__(self, batch: object, **arguments: float) -> Losses:
        """The losses of one batch."""
        return cast(Losses, self.objective(batch, **arguments))

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward: gradients meet only in the ``last`` one of a step."""
        return nullcontext()

    def finish(self) -> None:
        """To be called between the last backward of a step and the optimizer."""

    @contextmanager
    def plain(self) -> Iterator[nn.Module]:
        """The model itself, whole and in evaluation mode: what evaluates and is saved.

        Every process must enter; on those after the first the model may be empty.
        """
        training, model = self.objective.training, cast(nn.Module, self.objective.model)
        model.eval()
        try:
            yield model
        finally:
            self.objective.train(training)


class Replicated(Alone):
    """A whole copy of everything on each process (DDP); gradients are averaged."""

    def __init__(self, objective: nn.Module, place: Place, *, some_unused: bool = False) -> None:
        super().__init__(objective)
        make_equal(objective)
        with warnings.catch_warnings():
            # Newer versions have another name for this option, which older ones lack.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.parallel = DistributedDataParallel(
                objective,
                device_ids=[place.device.index] if place.device.type == "cuda" else None,
                broadcast_buffers=False,  # queues advance alike everywhere, since they take in what was gathered
                gradient_as_bucket_view=True,
                find_unused_parameters=some_unused,
            )
        _KEPT.append(self.parallel)

    def __call__(self, batch: object, **arguments: float) -> Losses:
        return cast(Losses, self.parallel(batch, **arguments))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        with nullcontext() if last else self.parallel.no_sync():
            yield


class Sharded(Alone):
    """Weights, gradients and optimizer state in shards (FSDP2), one unit per layer; gradients are averaged.

    Layers are units because each runs inside its own ``forward`` (or ``keys_values``); everything else belongs to the
    objective, whose ``forward`` holds the whole step. Two things need care. Scalars cannot lie in shards, so the
    temperature stays whole and its gradient is averaged here. And the momentum twin moves before the forward, when
    its weights and the model's lie in the same shards, which is the same as moving inside it: nothing changes between.
    """

    def __init__(self, objective: nn.Module, place: Place) -> None:
        super().__init__(objective)
        make_equal(objective)
        self.place = place
        self.empty = copy.deepcopy(cast(nn.Module, objective.model)).to("meta").eval()
        mesh = init_device_mesh(place.device.type, (place.size,))
        self.scalars = [parameter for parameter in objective.parameters() if parameter.ndim == 0]
        for module in list(objective.modules()):
            if isinstance(module, Block | TextLayer):
                fully_shard(module, mesh=mesh)
                if isinstance(module, TextLayer):
                    register_fsdp_forward_method(module, "keys_values")
        fully_shard(objective, mesh=mesh, ignored_params=set(self.scalars))
        self.root = cast(FSDPModule, objective)
        twin = getattr(objective, "twin", None)
        self.twin = twin if isinstance(twin, MomentumTwin) else None
        if self.twin is not None:
            self.twin.held = True
        # Keys and values are views; nothing here writes into them, which is what this warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

    def __call__(self, batch: object, **arguments: float) -> Losses:
        if self.twin is not None and self.objective.training:
            self.twin.move(cast(Any, self.objective).model)
        return super().__call__(batch, **arguments)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.root.set_requires_gradient_sync(last)
        yield

    def finish(self) -> None:
        for scalar in self.scalars:
            if scalar.grad is not None:
                scalar.grad = self.place.mean(scalar.grad)

    @contextmanager
    def plain(self) -> Iterator[nn.Module]:
        copied = copy.deepcopy(self.empty)
        state = whole_state(cast(nn.Module, self.objective.model).state_dict())
        if self.place.is_first:
            copied.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
        yield copied


def share(objective: nn.Module, place: Place, strategy: Strategy = "ddp", *, some_unused: bool = False) -> Alone:
    """The objective, shared among the processes there are. ``some_unused``: parts of the model never get a gradient."""
    if strategy not in ("ddp", "fsdp"):
        raise ConfigError(f"strategy is ddp or fsdp, not {strategy!r}")
    if place.size == 1:
        return Alone(objective)
    if strategy == "ddp":
        return Replicated(objective, place, some_unused=some_unused)
    return Sharded(objective, place)


@torch.no_grad()
def make_equal(module: nn.Module) -> None:
    """Give every process the first one's weights and buffers, queues among them."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
