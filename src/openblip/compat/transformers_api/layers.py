"""Functions that text and vision modules share: activations, gradient checkpointing, and attention weights.

The trees in `text_layers.py` and `vision_layers.py` have the module, parameter and buffer names of `transformers`, hold
the only copy of the weights, and compute: a replaced submodule changes what runs, and hooks fire. The kernels come from
`openblip.model.layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from openblip.compat.transformers_api.config import activation_name
from openblip.model.config import Activation
from openblip.model.layers import attend, get_activation


class QuickGelu(nn.Module):
    """The activation x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of the shape of `x`."""
        return get_activation("quick_gelu")(x)


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGelu,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


def make_activation(hidden_act: Any) -> nn.Module:
    """Return the activation module of a configuration's `hidden_act`: a name, or a module."""
    return hidden_act if isinstance(hidden_act, nn.Module) else _ACTIVATIONS[activation_name(hidden_act)]()


class CheckpointedLayer(nn.Module):
    """A layer whose activations can be recomputed in the backward pass (gradient checkpointing)."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any] = staticmethod(partial(checkpoint, use_reentrant=False))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, and do not store its activations if gradient checkpointing is enabled in training."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(partial(super().__call__, **kwargs), *args)
        return super().__call__(*args, **kwargs)


def weights_are_hidden(attention: nn.Module, *inner: nn.Module) -> bool:
    """Return whether no caller or hook can see the attention weights that a module returns.

    The published modules return their attention weights, which excludes the fused kernel. The layers ignore them, so
    they are only computed where a hook could read them, or where a module is not ours.

    Args:
        attention: The attention module.
        inner: Modules inside it that return the weights, too.

    Returns:
        Whether the call may omit the weights.
    """
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
    ):
        return False
    for module in (attention, *inner):
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return False
    return True


def mix(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: nn.Module, need_weights: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute attention, with the fused kernel if its weights are not needed.

    Args:
        query: Queries (B, H, T, K).
        key: Keys (B, H, S, K).
        value: Values (B, H, S, K).
        bias: Additive attention bias, broadcastable to (B, H, T, S).
        dropout: Dropout of the weights.
        need_weights: Whether to return the weights.

    Returns:
        Mixed values (B, H, T, K), and the weights (B, H, T, S) before and after dropout, if needed.
    """
    drops = (dropout.training and getattr(dropout, "p", 1.0) > 0) or dropout._forward_hooks
    if not (need_weights or drops):
        return attend(query, key, value, bias, 0.0, None), None, None
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    dropped = dropout(weights)
    return dropped @ value, weights, dropped
