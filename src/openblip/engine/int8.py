"""Linear layers of 8-bit weights for plain PyTorch on a CPU.

Weights are stored once, with a scale per output channel; activations are rounded when they arrive, with a scale per
row. So a row's result depends on that row alone, whatever batch it comes in. Everything between the layers stays in
float32.

Shapes: R rows, W and D input and output width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MOST = 127.0  # -128 is left out, so that both signs reach equally far


class Int8Linear(nn.Module):
    """A linear layer: int8 weights (D, W), their scales (D,), a float bias."""

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
        """(..., W) to (..., D)."""
        return multiply(x, self.weight, self.scale, self.bias)


class Int8Embedding(nn.Module):
    """Word vectors of 8 bits, which are the language head's output matrix too."""

    weight: Tensor
    scale: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        rounded, scale = round_rows(embedding.weight.float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)  # (V, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of ids (...)."""
        return self.weight[ids] * self.scale[ids]

    def scores(self, states: Tensor, bias: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D)."""
        return multiply(states, self.weight, self.scale.squeeze(1), bias)


def quantize(module: nn.Module) -> nn.Module:
    """Put 8-bit layers in the place of all linear layers and embeddings of words, one at a time, and return the module.

    Convolutions, norms and positions stay as they are: they are small.
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
    """``x`` (..., W) times the transpose of ``weight`` (D, W) int8 with ``scale`` (D,), plus ``bias`` (D,)."""
    rows = x.reshape(-1, x.shape[-1])
    rounded, each = round_rows(rows)
    product = torch._int_mm(rounded, weight.t())  # (R, D), int32: exact
    out = product.to(each.dtype).mul_(each).mul_(scale)
    if bias is not None:
        out.add_(bias)
    return out.view(*x.shape[:-1], len(weight))


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, W) as int8 and the scale (R, 1) of each: the greatest magnitude becomes 127."""
    scale = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _MOST) / _MOST
    return (rows / scale).round_().to(torch.int8), scale
