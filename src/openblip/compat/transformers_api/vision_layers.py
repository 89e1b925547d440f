"""The module tree of the image encoder, with the names of `transformers`.

Shapes: B images, N patches, D width, H heads, K = D // H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openblip.compat.transformers_api.config import BlipVisionConfig
from openblip.compat.transformers_api.layers import CheckpointedLayer, make_activation, mix, weights_are_hidden
from openblip.compat.transformers_api.outputs import BaseModelOutput
from openblip.errors import ConfigError, InputError
from openblip.model.layers import Trace
from openblip.model.packing import apply_linear
from openblip.model.vision import resize_positions


class BlipVisionEmbeddings(nn.Module):
    """The class token and the patches, with positions."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.hidden_size
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.num_positions = self.num_patches + 1
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.patch_embedding = nn.Conv2d(3, self.embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, self.num_positions, self.embed_dim))

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Return position embeddings (1, N + 1, D) for images of `height` x `width` pixels."""
        return resize_positions(self.position_embedding, height // self.patch_size, width // self.patch_size)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Return states (B, N + 1, D) of normalized pixels (B, 3, S, S).

        Raises:
            InputError: The images have another size than the configured one, without `interpolate_pos_encoding`.
        """
        height, width = pixel_values.shape[-2:]
        if (height, width) != (self.image_size, self.image_size) and not interpolate_pos_encoding:
            raise InputError(
                f"images must have {self.image_size} x {self.image_size} pixels, got {height} x {width}; resize them, "
                "or use interpolate_pos_encoding=True"
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))  # (B, D, rows, columns)
        patches = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        positions: Tensor = self.position_embedding
        if interpolate_pos_encoding:
            positions = self.interpolate_pos_encoding(patches, height, width)
        tokens = torch.cat([self.class_embedding.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)
        return tokens + positions.to(patches.dtype)


class BlipAttention(nn.Module):
    """Self-attention with one projection to queries, keys and values, in this order."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        if self.head_dim * self.num_heads != self.embed_dim:
            raise ConfigError(
                f"the vision width must be a multiple of the number of heads, got {self.embed_dim} and {self.num_heads}"
            )
        self.scale = self.head_dim**-0.5
        self.dropout = nn.Dropout(config.attention_dropout)
        self.qkv = nn.Linear(self.embed_dim, 3 * self.embed_dim)
        self.projection = nn.Linear(self.embed_dim, self.embed_dim)

    def forward(self, hidden_states: Tensor, need_weights: bool = True, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Mix values.

        Args:
            hidden_states: States (B, N + 1, D).
            need_weights: Whether to return the attention weights, which excludes the fused kernel.
            **kwargs: Ignored.

        Returns:
            States (B, N + 1, D), and the attention weights (B, H, N + 1, N + 1) after dropout, or `None`.
        """
        qkv = apply_linear(self.qkv, hidden_states).view(
            *hidden_states.shape[:2], 3, self.num_heads, -1
        )  # (B, N + 1, 3, H, K)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N + 1, K)
        mixed, _, weights = mix(query, key, value, None, self.dropout, need_weights)
        return apply_linear(self.projection, mixed.transpose(1, 2).flatten(2)), weights


class BlipMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_fn = make_activation(config.hidden_act)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return states (B, N + 1, D) of states (B, N + 1, D)."""
        return apply_linear(self.fc2, self.activation_fn(apply_linear(self.fc1, hidden_states)))


class BlipEncoderLayer(CheckpointedLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.embed_dim = config.hidden_size
        self.self_attn = BlipAttention(config)
        self.layer_norm1 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)
        self.mlp = BlipMLP(config)
        self.layer_norm2 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, trace: Trace | None = None, **kwargs: Any) -> Tensor:
        """Return states (B, N + 1, D) of states (B, N + 1, D); `trace` records attention weights."""
        attention = self.self_attn
        records = trace if trace is not None and trace.attention else None
        if records is None and type(attention) is BlipAttention and weights_are_hidden(attention):
            kwargs["need_weights"] = False
        mixed, weights = attention(hidden_states=self.layer_norm1(hidden_states), **kwargs)
        if records is not None:
            records.self_weights.append(weights)
        hidden_states = mixed + hidden_states
        return self.mlp(self.layer_norm2(hidden_states)) + hidden_states


class BlipEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([BlipEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Run all blocks.

        Args:
            inputs_embeds: States (B, N + 1, D).
            **kwargs: Passed to the blocks; `trace` records states and attention weights.

        Returns:
            States (B, N + 1, D), before the final norm.
        """
        trace: Trace | None = kwargs.get("trace")
        states = inputs_embeds
        if trace is not None:
            trace.hidden.append(states)
        for layer in self.layers:
            states = layer(states, **kwargs)
            if trace is not None:
                trace.hidden.append(states)
        return BaseModelOutput(last_hidden_state=states)
