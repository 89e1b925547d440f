"""Weights in the order in which oneDNN's kernels read them, for inference on a CPU.

A product of a few rows with a weight matrix takes as long as reading the matrix, but PyTorch's kernels first copy the
matrix into their own order, in each call: always in bf16, and from a few rows on in fp32. A `Packing` does this once
per layer and keeps the copy, while the model's parameters stay as they are.

The copy of a layer is used only if a call of the layer would compute nothing but its product (`is_plain_linear`),
without autograd, autocast, training mode, tracing or compilation, and only as long as the layer has the same weights:
every call compares the parameter's version and address, and `Packing.check`, which runs once per decoding session or
forward pass, compares a sample of the values, because writes to `parameter.data` change neither.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeGuard, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from openblip.heap import keep_freed_memory
from openblip.model.products import has_onednn, is_onednn_faster, multiply
from openblip.processor import is_amd, is_intel

_ROWS = 64  # the number of rows that oneDNN packs for; what it packs for 1 row is slower with any number of rows
_STRIDE = 257  # one number of each 257 is compared: prime to the usual widths, so that every row and column has some


@dataclass(frozen=True, eq=False)
class _PackedWeight:
    """A packed copy, and what identifies the weight that it was made of."""

    packed: Tensor
    sample: Tensor
    key: tuple[object, ...]

    def is_of(self, weight: Tensor) -> bool:
        """Return whether the weight has the same version, address, type and shape."""
        return self.key == _key(weight)


class Packing:
    """Packed copies of the weights of modules, made when they are first used and freed with the modules."""

    def __init__(self) -> None:
        self._weights: WeakKeyDictionary[nn.Module, _PackedWeight] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of packed weights."""
        return len(self._weights)

    def check(self) -> None:
        """Drop the copies of weights whose values have changed."""
        with self._lock:
            for module, entry in list(self._weights.items()):
                weight = module.weight
                same = isinstance(weight, Tensor) and entry.is_of(weight)
                if not (same and torch.equal(entry.sample, _sample(cast(Tensor, weight)))):
                    del self._weights[module]

    @contextmanager
    def active(self, model: nn.Module, *, checked: bool = False) -> Iterator[None]:
        """Let the layers of a model, in this thread, use packed weights in a `with` block.

        From the first block on, the process also keeps freed memory; see `openblip.heap`.

        Args:
            model: The model.
            checked: Whether the caller has called `check` in this decoding session.
        """
        weight = next(model.parameters(), None)
        if weight is None or not _is_useful(weight):
            yield
            return
        keep_freed_memory()
        if not checked:
            self.check()
        previous, _local.active = _local.active, self
        try:
            yield
        finally:
            _local.active = previous

    def multiply(self, owner: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """Return the product of rows (..., W) with a weight (D, W) of `owner`, plus the bias (D,)."""
        rows = x.numel() // x.shape[-1]
        if owner.training or x.dtype != weight.dtype or not _is_worthwhile(weight, rows):
            return multiply(x, weight, bias)
        entry = self._weights.get(owner)
        if entry is None or not entry.is_of(weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
            entry = _PackedWeight(packed, _sample(weight), _key(weight))
            with self._lock:
                self._weights[owner] = entry
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), entry.packed, bias, "none", [], "")


def packing_of(module: nn.Module) -> Packing:
    """Return the packing that belongs to a module, the same one in every call."""
    with _lock:
        return _packings.setdefault(module, Packing())


_packings: WeakKeyDictionary[nn.Module, Packing] = WeakKeyDictionary()
_lock = threading.Lock()


class _Local(threading.local):
    active: Packing | None = None


_local = _Local()


def apply_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """Call a linear layer, or multiply by its packed weights where a `Packing` is active.

    Args:
        linear: The layer, or whatever has replaced it.
        x: Rows (..., W).

    Returns:
        Rows (..., D).
    """
    if torch.compiler.is_compiling() or not is_plain_linear(linear):
        return linear(x)
    if _local.active is None:
        return multiply(x, linear.weight, linear.bias)
    return _local.active.multiply(linear, linear.weight, linear.bias, x)


def apply_output_matrix(embedding: nn.Embedding, bias: Tensor, x: Tensor) -> Tensor:
    """Return logits (..., V) of states (..., D) by a word embedding, packed where a `Packing` is active."""
    weight = embedding.weight
    if torch.compiler.is_compiling() or _local.active is None or type(weight) is not nn.Parameter:
        return multiply(x, weight, bias)
    return _local.active.multiply(embedding, weight, bias, x)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a call of the module is its product and nothing else: no subclass, hook or replaced method."""
    if type(module) is not nn.Linear or "forward" in vars(module) or type(module.weight) is not nn.Parameter:
        return False
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks, torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )  # fmt: skip
    return not any(hooks)


def _key(weight: Tensor) -> tuple[object, ...]:
    return weight._version, weight.data_ptr(), weight.dtype, weight.shape


def _sample(weight: Tensor) -> Tensor:
    return weight.detach().flatten()[::_STRIDE].clone()


def _is_useful(weight: Tensor) -> bool:
    """Return whether packing can be used now: on this device and in this mode."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and not weight.is_inference()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and has_onednn(weight.dtype)
    )


def _is_worthwhile(weight: Tensor, rows: int) -> bool:
    """Return whether a product with so many rows is faster with the packed weight."""
    if (
        weight.numel() < _smallest(weight.dtype)
        or weight.device.type != "cpu"
        or not weight.is_contiguous()
        or weight.is_inference()
    ):
        return False
    return weight.dtype == torch.bfloat16 or _fewest_rows() <= rows <= _most_rows()


@cache
def _smallest(dtype: torch.dtype) -> int:
    """Return the numbers from which on a weight is packed; a smaller one stays in the processor's cache.

    In fp32 on Intel, packing weights of 768 x 768 numbers would save 0 to 2 % of a step, for 172 MB in a base decoder.
    """
    return 2**20 if dtype == torch.float32 and is_intel() else 2**18


@cache
def _fewest_rows() -> int:
    """Return the rows from which on packed weights are faster in fp32.

    On Intel, MKL reads the weight in place for 3 rows; on AMD, it reads it with a single thread for 1 row.
    """
    if is_amd():
        return 1
    return 4 if is_intel() else 2


@cache
def _most_rows() -> int:
    """Return the rows up to which packed weights are faster in fp32.

    Where oneDNN is faster than MKL, that is about the rows of 3 images; with more rows it is as fast without packing.
    Elsewhere PyTorch's kernels are as fast from 64 rows on.
    """
    return 2048 if is_onednn_faster() else 64
