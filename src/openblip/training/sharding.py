"""Tensors that FSDP has sharded over processes: full values, local shards, and gradient norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full value of a tensor. Every process must call it for a sharded tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor: the same memory, without the cost of a distributed call."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return a full tensor, which every process holds, on the device and in the shards of `reference`."""
    tensor = tensor.to(reference.device)
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their total norm is at most `max_norm`.

    Like `torch.nn.utils.clip_grad_norm_`, which cannot take sharded and full gradients together.

    Args:
        parameters: Parameters, with or without gradients.
        max_norm: Largest total norm.

    Returns:
        The total norm before scaling.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    groups = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (False, True)]
    norms = [full_tensor(torch.nn.utils.get_total_norm(group)) for group in groups if group]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return norm
