"""Tensors that may lie in shards across processes (FSDP), seen whole: what checkpoints and norms need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of it, which every process must then ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As :func:`whole`, for many tensors by their names: shards travel together, not one by one.

    FSDP cuts the first dimension into as many equal parts as there are processes; the last may be short, or empty.
    """
    sharded = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    found = {name: tensor for name, tensor in tensors.items() if name not in sharded}
    for names in _bundles(sharded):
        found |= _gathered({name: sharded[name] for name in names})
    return {name: found[name] for name in tensors}


def _bundles(tensors: Mapping[str, DTensor]) -> Iterator[list[str]]:
    """Names of tensors of one type, up to a quarter of a billion bytes of them at a time."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
        bundle, size = list[str](), 0
        for name, tensor in tensors.items():
            if tensor.dtype is dtype:
                bundle.append(name)
                size += tensor.numel() * tensor.element_size()
            if size > 2**28:
                yield bundle
                bundle, size = [], 0
        if bundle:
            yield bundle


@torch.no_grad()
def _gathered(tensors: Mapping[str, DTensor]) -> dict[str, Tensor]:
    processes = dist.get_world_size()
    parts = {name: -(-len(tensor) // processes) for name, tensor in tensors.items()}  # rows of a full part
    mine = []
    for name, tensor in tensors.items():
        rows = tensor.to_local()
        missing = rows.new_zeros(parts[name] - len(rows), *tensor.shape[1:])
        mine.append(torch.cat([rows, missing]).flatten())
    packed = torch.cat(mine)
    everyone = [torch.empty_like(packed) for _ in range(processes)]
    dist.all_gather(everyone, packed)
    columns = torch.split(torch.stack(everyone), [len(part) for part in mine], dim=1)
    return {
        name: column.reshape(-1, *tensor.shape[1:])[: len(tensor)]
        for (name, tensor), column in zip(tensors.items(), columns, strict=True)
    }


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or this process's shard of it: the same memory, without the cost of a distributed call."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, which every process holds, as ``model`` lies: this process's shard of it, on its device."""
    tensor = tensor.to(model.device)
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], most: float) -> Tensor:
    """Scale all gradients so that their norm together is at most ``most``; the norm they had.

    As ``torch.nn.utils.clip_grad_norm_``, which cannot take sharded and whole gradients at once.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return norm
