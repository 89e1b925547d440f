"""What both towers are made of: attention, the MLP, drop path, masks, and the record of a forward pass.

Shapes: B rows, I items (an item's rows share one memory), T queries, S keys, D width, H heads, K = D // H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model.config import Activation


@dataclass
class Trace:
    """What one forward pass leaves behind when asked: pass an empty one in, read it afterwards.

    ``hidden`` holds the input of the first layer and the output of each one (before a final norm). With ``attention``
    the softmax probabilities (B, H, T, S) are kept too, inside the graph, so that Grad-CAM can ask for gradients; this
    costs the fused kernel, nothing else changes.
    """

    attention: bool = False
    hidden: list[Tensor] = field(default_factory=list)
    self_weights: list[Tensor] = field(default_factory=list)
    cross_weights: list[Tensor] = field(default_factory=list)


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """The activation function of an MLP; BLIP was trained with the exact (erf) GELU."""
    return _ACTIVATIONS[name]


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention bias (B, 1, 1, S) of a padding mask (B, S) in which 1 marks a real token.

    The most negative finite number stands for "unseen", so that a row with nothing to see gets a uniform mixture and
    not NaN.
    """
    return unseen_bias(mask[:, None, None, :] == 0, dtype)


def causal_bias(length: int, dtype: torch.dtype, device: torch.device, mask: Tensor | None = None) -> Tensor:
    """Additive bias (1 or B, 1, T, T) under which a token sees itself, earlier tokens, and no padding."""
    unseen = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)[None, None]
    if mask is not None:
        unseen = unseen | (mask[:, None, None, :] == 0)
    return unseen_bias(unseen, dtype)


def unseen_bias(where: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention bias that hides what ``where`` marks."""
    return torch.zeros(where.shape, dtype=dtype, device=where.device).masked_fill_(where, torch.finfo(dtype).min)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, record: list[Tensor] | None
) -> Tensor:
    """Scaled dot-product attention (B, H, T, K); with ``record`` the probabilities are computed openly and kept."""
    if record is not None:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = F.softmax(scores if bias is None else scores + bias, dim=-1)
        record.append(weights)
        return F.dropout(weights, dropout) @ value
    if _short(query, key) and (_traced() or _trained_on_cpu(query)):
        return _attend_openly(query, key, value, bias, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


_SHORT = 128 * 128  # queries times keys


def _short(query: Tensor, key: Tensor) -> bool:
    """Where plain products beat the fused kernel: in training on a CPU, and in what OpenVINO makes of a traced model.

    OpenVINO takes the fused kernel apart into one that scales and transposes all keys anew at every step of a decoder,
    which doubles the time of a step; it is the better one for a whole picture.
    """
    return query.shape[-2] * key.shape[-2] <= _SHORT


def _traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _trained_on_cpu(query: Tensor) -> bool:
    """The CPU's fused kernel has a slow backward: for short sequences it takes up to six times as long in bf16."""
    return query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad


def _attend_openly(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attention as two batched products, in the precision of its inputs as the fused kernel computes it."""
    with torch.autocast(query.device.type, enabled=False):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        weights = F.softmax(scores if bias is None else scores + bias.to(scores.dtype), dim=-1)
        return F.dropout(weights, dropout) @ value


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value projections, as in BERT.

    Keys and values are projected by :meth:`keys_values` and handed in, because they often outlive one call: a cache
    appends to them, and those of an image serve every beam, question and text about it.
    """

    def __init__(self, width: int, heads: int, memory_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width or width, width)
        self.value = nn.Linear(memory_width or width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is attended to, (I, S, W), to keys and values, each (I, H, S, K)."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None, record: list[Tensor] | None = None
    ) -> Tensor:
        """Mix the values for each row of ``x`` (B, T, D).

        With fewer items than rows, the rows of an item lie side by side and are folded into its queries: B = I * rows,
        one pass over the item's keys, nothing repeated.
        """
        key, value = keys_values
        rows, length, width = x.shape
        query = self._split(self.query(x).view(key.shape[0], -1, width))  # (I, H, B/I * T, K)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, bias, dropout, record)
        return self.out(mixed.transpose(1, 2).reshape(rows, length, width))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, K)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, act: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero whole residual branches, one draw per row, and rescale the rest (stochastic depth)."""
    if not training or rate == 0.0:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device) >= rate
    return x * keep / (1.0 - rate)
