"""The processes of a distributed run, which `torchrun` starts: device, rank, and exchange of values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from openblip.engine.device import check_available, resolve_device
from openblip.training.objectives.gather import Gather

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroupInfo:
    """This process and its group.

    Attributes:
        device: Device that this process computes on.
        rank: Number of this process.
        world_size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process logs, evaluates and saves."""
        return self.rank == 0

    @property
    def gather(self) -> Gather:
        """Gathers tensors of all processes, for objectives."""
        return RankGather(self.rank, self.world_size) if self.world_size > 1 else Gather()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.world_size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world_size

    def broadcast(self, value: T) -> T:
        """Return the main process's value on every process; it must consist of plain values."""
        if self.world_size == 1:
            return value
        objects = [value]
        dist.broadcast_object_list(objects, src=0)
        return objects[0]

    def collect(self, value: T) -> list[T]:
        """Return the value of every process, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        self.broadcast(None)


@contextmanager
def join_processes(device: str = "auto", timeout_minutes: float = 120.0) -> Iterator[ProcessGroupInfo]:
    """Join the process group of `torchrun`, if this process is part of one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        timeout_minutes: Time that processes wait for the main process while it evaluates or saves.

    Yields:
        This process and its group.

    Raises:
        InputError: If the device is unknown.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        own_device = resolve_device(device)
        check_available(own_device)
        yield ProcessGroupInfo(own_device)
        return
    kind = resolve_device(device).type
    own_device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(own_device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    try:
        yield ProcessGroupInfo(own_device, dist.get_rank(), world_size)
    finally:
        dist.destroy_process_group()


class RankGather(Gather):
    """Gathers rows from every process; the processes may hold different numbers of rows."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size

    def __call__(self, rows: Tensor) -> Tensor:
        gathered: Tensor = _GatherRows.apply(rows, self.rank, self.world_size)  # type: ignore[no-untyped-call]
        return gathered


class _GatherRows(torch.autograd.Function):
    """Gathers rows (B, ...); backward sums the gradients of all processes for the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world_size: int) -> Tensor:
        counts = _all_gather(torch.tensor([len(rows)], device=rows.device), world_size).tolist()
        ctx.own_rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        longest = max(counts)
        if len(rows) < longest:
            rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        gathered = _all_gather(rows, world_size)
        if min(counts) == longest:
            return gathered
        chunks = torch.split(gathered, longest)
        return torch.cat([chunk[:count] for chunk, count in zip(chunks, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.own_rows], None, None


def _all_gather(rows: Tensor, world_size: int) -> Tensor:
    dtype = torch.uint8 if rows.dtype == torch.bool else rows.dtype  # not every backend supports booleans
    chunks = [torch.empty_like(rows, dtype=dtype) for _ in range(world_size)]
    dist.all_gather(chunks, rows.to(dtype).contiguous())
    return torch.cat(chunks).to(rows.dtype)
