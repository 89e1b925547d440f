"""The image encoder: a vision transformer (Dosovitskiy et al. 2021; paper section 3.1).

Shapes: B images, N = grid * grid patches, D width, H heads, K = D // H.
"""

from __future__ import annotations

from openblip.errors import ConfigError, InputError
from openblip.keras.backend import Tensor, keras, normal, ops
from openblip.keras.layers import Mlp, Trace, attend, dense, layer_norm
from openblip.model.config import VisionConfig


class VisionTransformer(keras.layers.Layer):
    """Normalized pixels (B, 3, S, S) to image states (B, N + 1, D): the class token, then the patches.

    Args:
        config: Configuration of the encoder.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.stem is not None:
            raise ConfigError("the Keras classes have no hybrid ViT: load the model with openblip.load")
        self.config = config
        self.cls_token = self.add_weight((1, 1, config.width), normal(0.02), name="cls_token")
        self.pos_embed = self.add_weight((1, config.tokens, config.width), normal(0.02), name="pos_embed")
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        self.blocks = [Block(config) for _ in range(config.depth)]
        self.norm = layer_norm(config.width, config.layer_norm_eps)
        self.built = True

    def call(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        """Encode a batch of images.

        Args:
            pixels: Normalized pixels (B, 3, S, S).
            trace: Records states and attention.

        Returns:
            Image states (B, N + 1, D).

        Raises:
            InputError: The images have another size than the configured one.
        """
        size = self.config.image_size
        if tuple(pixels.shape[1:]) != (3, size, size):
            raise InputError(
                f"pixel_values must have shape (images, 3, {size}, {size}), channels first, got {tuple(pixels.shape)}"
            )
        patches = self.patch_embed(pixels)  # (B, N, D)
        shape = (ops.shape(patches)[0], 1, self.config.width)
        cls_tokens = ops.broadcast_to(ops.cast(self.cls_token, patches.dtype), shape)
        x = ops.concatenate([cls_tokens, patches], axis=1) + ops.cast(self.pos_embed, patches.dtype)
        if trace is not None:
            trace.hidden.append(x)
        for block in self.blocks:
            x = block(x, trace=trace)
            if trace is not None:
                trace.hidden.append(x)
        return self.norm(x)


class PatchEmbed(keras.layers.Layer):
    """The convolution over square patches, as one matrix product: its stride is its size."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.kernel = self.add_weight((3 * patch_size**2, width), normal(0.02), name="kernel")
        self.bias = self.add_weight((width,), "zeros", name="bias")
        self.built = True

    def call(self, pixels: Tensor) -> Tensor:
        """Return patches (B, N, D), row by row, of pixels (B, 3, S, S)."""
        side, size = self.patch_size, pixels.shape[-1]
        grid = size // side
        x = pixels[:, :, : grid * side, : grid * side]  # as in a strided convolution, a remainder is cut off
        x = ops.reshape(x, (-1, 3, grid, side, grid, side))
        x = ops.reshape(ops.transpose(x, (0, 2, 4, 1, 3, 5)), (-1, grid * grid, 3 * side * side))
        return ops.matmul(x, ops.cast(self.kernel, x.dtype)) + ops.cast(self.bias, x.dtype)


class Block(keras.layers.Layer):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = layer_norm(config.width, config.layer_norm_eps)
        self.attn = FusedSelfAttention(config.width, config.heads, config.attention_dropout)
        self.norm2 = layer_norm(config.width, config.layer_norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)
        self.built = True

    def call(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Return states (B, N + 1, D) of states (B, N + 1, D)."""
        x = x + self.attn(self.norm1(x), trace=trace)
        return x + self.mlp(self.norm2(x))


class FusedSelfAttention(keras.layers.Layer):
    """Self-attention with one projection to queries, keys and values, in this order."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.qkv = dense(width, 3 * width)
        self.proj = dense(width, width)
        self.dropout = keras.layers.Dropout(dropout) if dropout else None
        self.built = True

    def call(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Return states (B, N + 1, D) of states (B, N + 1, D)."""
        length = x.shape[1]
        qkv = ops.reshape(self.qkv(x), (-1, length, 3, self.heads, self.width // self.heads))  # (B, N, 3, H, K)
        qkv = ops.transpose(qkv, (2, 0, 3, 1, 4))  # (3, B, H, N, K)
        record = trace.self_weights if trace is not None and trace.attention else None
        mixed = attend(qkv[0], qkv[1], qkv[2], None, self.dropout, record)
        return self.proj(ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, length, self.width)))  # (B, N, D)
