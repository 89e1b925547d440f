"""Building blocks of both encoders: attention, MLP, drop path, attention biases, and the record of a forward pass.

Shapes: B rows, I items (the rows of an item share a memory and are adjacent), T queries, S keys, D width, H heads,
K = D // H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.model.config import Activation
from openblip.model.packing import apply_linear, is_plain_linear
from openblip.model.products import is_amd_with_bf16, multiply, uses_onednn


@dataclass
class Trace:
    """Records of a forward pass: pass an empty trace in, and read it afterwards.

    Attributes:
        attention: Whether to record attention. This excludes the fused attention kernel.
        hidden: Input of the first layer and output of each layer, before a final norm.
        self_weights: Self-attention probabilities (B, H, T, S) of each layer, with gradients for Grad-CAM.
        cross_weights: Cross-attention probabilities (B, H, T, S) of each layer, with gradients for Grad-CAM.
    """

    attention: bool = False
    hidden: list[Tensor] = field(default_factory=list)
    self_weights: list[Tensor] = field(default_factory=list)
    cross_weights: list[Tensor] = field(default_factory=list)


def get_activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the activation function of an MLP. BLIP was trained with the exact (erf) GELU."""
    return _ACTIVATIONS[name]


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive attention bias of a padding mask.

    Hidden tokens get the lowest finite number, not minus infinity, so that the attention of a row without visible
    tokens is uniform, not NaN.

    Args:
        mask: 1 for tokens, 0 for padding (B, S).
        dtype: Type of the bias.

    Returns:
        Bias (B, 1, 1, S).
    """
    return hiding_bias(mask[:, None, None, :] == 0, dtype)


def causal_bias(length: int, dtype: torch.dtype, device: torch.device, mask: Tensor | None = None) -> Tensor:
    """Return the additive attention bias with which a token attends to itself and to earlier tokens.

    Args:
        length: Number of tokens T.
        dtype: Type of the bias.
        device: Device of the bias.
        mask: 1 for tokens, 0 for padding (B, T); padding is hidden, too.

    Returns:
        Bias (1, 1, T, T), or (B, 1, T, T) with a mask.
    """
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)[None, None]
    if mask is not None:
        hidden = hidden | (mask[:, None, None, :] == 0)
    return hiding_bias(hidden, dtype)


def hiding_bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive attention bias that hides the positions marked in `hidden`; see `padding_bias`."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, record: list[Tensor] | None
) -> Tensor:
    """Compute scaled dot-product attention by the fastest method for these shapes.

    Args:
        query: Queries (B, H, T, K).
        key: Keys (B, H, S, K).
        value: Values (B, H, S, K).
        bias: Additive attention bias, broadcastable to (B, H, T, S).
        dropout: Dropout of the probabilities.
        record: List to append the probabilities (B, H, T, S) to. This excludes the fused kernel.

    Returns:
        Mixed values (B, H, T, K).
    """
    if record is not None:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = F.softmax(scores if bias is None else scores + bias, dim=-1)
        record.append(weights)
        return F.dropout(weights, dropout) @ value
    if torch.compiler.is_exporting():
        return _mix(query, key, value, bias, dropout)
    size = query.shape[-2] * key.shape[-2]
    if key.stride(-1) != 1 and not torch.is_grad_enabled():  # columns of `project_columns`
        return _attend_unfused(query, key, value, bias, dropout)
    if (query.dtype, key.dtype) == (torch.float32, torch.bfloat16) and not torch.is_grad_enabled():
        return _mix_rounded(query, key, value, bias)
    is_tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if (size <= _SHORT and is_tracing) or _prefers_products(query, key, size):
        return _attend_unfused(query, key, value, bias, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


# Queries times keys up to which two products are faster than the fused kernel, in two cases: in training on a CPU, and
# in models traced for OpenVINO. OpenVINO converts the fused kernel to operations that scale and transpose all keys in
# each decoder step, which doubles the time of the step; for all tokens of an image they are the faster ones.
_SHORT = 128 * 128

# The same for training in bf16 on a CPU, where the fused kernel's backward pass takes 3 times as long as the products,
# up to images of 512 x 512 pixels. The probabilities that are kept for it take 2 bytes per query, key and head.
_SHORT_BF16 = 1025 * 1025

# Scores in bf16 that are computed at once without gradients: as many as the C library keeps in its heap.
_MOST_SCORES = 2**24


def _prefers_products(query: Tensor, key: Tensor, size: int) -> bool:
    """Return whether two products are faster than the fused kernel (on a CPU only)."""
    if query.device.type != "cpu":
        return False
    limit = _SHORT_BF16 if query.dtype == torch.bfloat16 else _SHORT
    if torch.is_grad_enabled() and query.requires_grad:
        return size <= limit
    return (
        query.dtype == key.dtype == torch.bfloat16
        and size <= limit
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not (torch.is_grad_enabled() and key.requires_grad)
        and is_amd_with_bf16()
    )


def _attend_unfused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Compute attention by two batched products, with scores in the precision of the inputs."""
    with torch.autocast(query.device.type, enabled=False):
        chunk_size = max(1, _MOST_SCORES // max(1, query.shape[1] * query.shape[2] * key.shape[2]))
        if query.dtype != torch.bfloat16 or query.requires_grad or len(query) <= chunk_size:
            return _mix(query, key, value, bias, dropout)
        biases: Iterable[Tensor | None] = repeat(None)
        if bias is not None:
            bias = bias[(None,) * (4 - bias.ndim)]
            biases = torch.split(bias.expand(len(query), *bias.shape[1:]), chunk_size)
        queries, keys, values = (torch.split(tensor, chunk_size) for tensor in (query, key, value))
        parts = zip(queries, keys, values, biases, strict=False)
        return torch.cat([_mix(*part, dropout) for part in parts])


def _mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Compute attention by two batched products. Only the queries are scaled, which are fewer than the keys."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None and bias.dtype != scores.dtype:  # the lowest float32 number would become minus infinity
        bias = bias.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = F.softmax(scores if bias is None else scores + bias, dim=-1)
    return F.dropout(weights, dropout) @ value


def _mix_rounded(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention with keys and values in bf16: the products are in bf16, the softmax in the type of `query`."""
    scores = ((query * query.shape[-1] ** -0.5).to(key.dtype) @ key.transpose(-1, -2)).to(query.dtype)
    weights = F.softmax(scores if bias is None else scores + bias, dim=-1)
    return (weights.to(value.dtype) @ value).to(query.dtype)


def project_columns(linear: nn.Module, states: Tensor, heads: int) -> Tensor:
    """Project states to keys or values whose numbers are stored column by column, for a CPU that decodes.

    A decoder step has few queries per image and reads all keys and values once. Stored as (I, H, K, M), they are read
    in order, which makes attention up to twice as fast; for many queries the fused kernel is faster.

    Args:
        linear: The projection. If it is not a plain linear layer, or has hooks, its output is copied instead.
        states: States (I, M, W).
        heads: Number of heads H.

    Returns:
        Keys or values (I, H, M, K), as a view of contiguous (I, H, K, M).
    """
    if not is_plain_linear(linear):
        projected = linear(states).transpose(1, 2).contiguous()
    elif uses_onednn(states, linear.weight):
        # Each image's states are the "weight" of a product with the rows of the real weight, so its result is (D, M).
        projected = torch.stack([multiply(linear.weight, image) for image in states])
        if linear.bias is not None:
            projected += linear.bias[:, None]
    else:
        weight, bias = linear.weight, linear.bias
        columns = states.transpose(1, 2)  # (I, W, M)
        if bias is None:
            projected = torch.bmm(weight.expand(len(states), -1, -1), columns)
        else:
            projected = torch.baddbmm(bias[:, None], weight.expand(len(states), -1, -1), columns)
    return projected.view(len(states), heads, -1, states.shape[1]).transpose(2, 3)


def select_items(keys: Tensor, items: Tensor) -> Tensor:
    """Return the keys or values (I, H, M, K) of some items, stored as they were."""
    if keys.stride(-1) == 1:
        return keys[items]
    return keys.transpose(2, 3)[items].transpose(2, 3)


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value projections, as in BERT.

    Keys and values are an argument, computed by `project_keys_values`, because they outlive a call: a cache appends to
    them, and the keys and values of an image serve all beams, questions and texts about it.

    Args:
        width: Width of the queries and of the output.
        heads: Number of heads.
        memory_width: Width of the states that keys and values are computed from; the default is `width`.
        dropout: Dropout of the probabilities.
    """

    def __init__(self, width: int, heads: int, memory_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width or width, width)
        self.value = nn.Linear(memory_width or width, width)
        self.out = nn.Linear(width, width)

    def project_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values, each (I, H, S, K), of states (I, S, W)."""
        return self._split_heads(apply_linear(self.key, memory)), self._split_heads(apply_linear(self.value, memory))

    def project_for_steps(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same as `project_keys_values`, stored such that decoder steps read it fast."""
        if memory.device.type != "cpu" or torch.is_grad_enabled():
            return self.project_keys_values(memory)
        if memory.dtype == torch.float32:
            return project_columns(self.key, memory, self.heads), project_columns(self.value, memory, self.heads)
        # In half precision, both the fused kernel and two products in bf16 read contiguous keys.
        keys, values = self.project_keys_values(memory)
        return keys.contiguous(), values.contiguous()

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None, record: list[Tensor] | None = None
    ) -> Tensor:
        """Mix the values for each row.

        The rows of an item become further queries of the item (B = I * rows): one pass over its keys, and no copy.

        Args:
            x: Rows (B, T, D).
            keys_values: Keys and values, each (I, H, S, K).
            bias: Additive attention bias, broadcastable to (I, H, B / I * T, S).
            record: List to append the probabilities to.

        Returns:
            Mixed rows (B, T, D).
        """
        key, value = keys_values
        rows, length, width = x.shape
        query = self._split_heads(apply_linear(self.query, x).view(key.shape[0], -1, width))  # (I, H, B / I * T, K)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, bias, dropout, record)
        return apply_linear(self.out, mixed.transpose(1, 2).reshape(rows, length, width))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, K)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = get_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return states (..., D) of states (..., D)."""
        return apply_linear(self.fc2, self.activation(apply_linear(self.fc1, x)))


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop residual branches at random and rescale the others (stochastic depth; Huang et al. 2016).

    Args:
        x: Output of the branch (B, ...); each row is dropped independently.
        rate: Probability of dropping a row.
        training: Whether to drop at all.

    Returns:
        The output, with dropped rows set to 0.
    """
    if not training or rate == 0.0:
        return x
    survives = torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device) >= rate
    return x * survives / (1.0 - rate)
