"""Products of rows with weight matrices in float32, by the faster of PyTorch's two libraries on a CPU.

PyTorch computes float32 products with MKL, which uses half of the width of AMD's AVX-512 units. oneDNN, which PyTorch
also contains, uses all of it, and takes about half of the time there: forward, and in both products of the backward
pass. On other processors, and in other types, `multiply` is `torch.nn.functional.linear`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from openblip.processor import flags, is_amd

_FEWEST_NUMBERS = 2**16  # in a weight; a smaller product takes less time than the call
_PLAIN = (Tensor, nn.Parameter)  # subclasses may have no kernel of oneDNN's


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the product of rows (..., W) with a weight (D, W), plus the bias (D,): rows (..., D)."""
    if not uses_onednn(x, weight):
        return F.linear(x, weight, bias)
    inputs = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return _multiply(x, weight, bias)


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether `multiply` uses oneDNN: it is faster than MKL here, and can compute this product."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and is_onednn_faster()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and weight.numel() >= _FEWEST_NUMBERS
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and torch._C._get_mkldnn_enabled()
    )


@cache
def is_onednn_faster() -> bool:
    """Return whether oneDNN computes float32 products faster than MKL on this processor, and PyTorch contains it."""
    return is_amd() and "avx512f" in flags() and has_onednn()


@cache
def is_amd_with_bf16() -> bool:
    """Return whether this is an AMD processor for which oneDNN has products in bf16."""
    return is_amd() and has_onednn(torch.bfloat16)


@cache
def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether this build of PyTorch has oneDNN's products, and the processor computes in this type."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """The product with the gradients of its three inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the product, and keep what the backward pass needs."""
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.shape = x.shape
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients by two further products."""
        x, weight = ctx.saved_tensors
        product = torch.matmul if torch.is_grad_enabled() else _matmul  # a second derivative needs PyTorch's own
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(rows, weight).view(ctx.shape) if needs_x else None,
            product(rows.t(), x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two matrices by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
