"""Linear layers with 8-bit weights for PyTorch on a CPU.

Weights are stored once, with one scale per output channel. Activations are rounded when they arrive, with one scale per
row, so the result of a row does not depend on its batch. All computations between the layers are in float32.

Shapes: R rows, W input width, D output width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MAX = 127.0  # -128 is not used, so that the range is symmetric


class Int8Linear(nn.Module):
    """A linear layer with int8 weights (D, W), their scales (D,), and a float bias (D,).

    Args:
        weight: Float weights (D, W).
        bias: Float bias (D,), or `None`.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = round_rows(weight.float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (..., D) of inputs (..., W)."""
        return multiply(x, self.weight, self.scale, self.bias)


class Int8Embedding(nn.Module):
    """A word embedding with int8 vectors, which is also the output matrix of the language head.

    Args:
        embedding: The float embedding.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        rounded, scale = round_rows(embedding.weight.float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)  # (V, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return vectors (..., D) of ids (...)."""
        return self.weight[ids] * self.scale[ids]

    def scores(self, states: Tensor, bias: Tensor) -> Tensor:
        """Return logits (..., V) of states (..., D)."""
        return multiply(states, self.weight, self.scale.squeeze(1), bias)


def quantize(module: nn.Module) -> nn.Module:
    """Replace all linear layers and word embeddings of a module by 8-bit layers, in place.

    Convolutions, norms and position embeddings are small and are not changed.

    Args:
        module: The module; its float weights are freed one layer at a time.

    Returns:
        The same module.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child.weight, child.bias))
        elif name == "word" and isinstance(child, nn.Embedding):
            setattr(module, name, Int8Embedding(child))
        else:
            quantize(child)
    return module


def multiply(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply float rows with int8 weights.

    Args:
        x: Rows (..., W).
        weight: int8 weights (D, W).
        scale: Scales of the output channels (D,).
        bias: Bias (D,), or `None`.

    Returns:
        Products (..., D).
    """
    rounded, row_scale = round_rows(x.reshape(-1, x.shape[-1]))
    product = torch._int_mm(rounded, weight.t())  # (R, D), int32: exact
    out = product.to(row_scale.dtype).mul_(row_scale).mul_(scale)
    if bias is not None:
        out.add_(bias)
    return out.view(*x.shape[:-1], len(weight))


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows (R, W) to int8, with one scale (R, 1) per row: the largest magnitude becomes 127."""
    scale = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _MAX) / _MAX
    return (rows / scale).round_().to(torch.int8), scale
