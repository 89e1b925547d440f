"""The image encoder: a vision transformer (Dosovitskiy et al. 2021; paper section 3.1).

Shapes: B images, N = grid * grid patches, D width, H heads, K = D // H.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import InputError
from openblip.model.config import VisionConfig
from openblip.model.layers import Mlp, Trace, attend, drop_path
from openblip.model.packing import apply_linear
from openblip.model.stem import EfficientNetLite


class VisionTransformer(nn.Module):
    """Normalized pixels (B, 3, S, S) to image states (B, N + 1, D): the class token, then the patches.

    Args:
        config: Configuration of the encoder.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.stem = EfficientNetLite(config.stem) if config.stem else None
        channels, side = (3, config.patch_size) if config.stem is None else (config.stem.head_width, 1)
        self.patch_embed = nn.Conv2d(channels, config.width, side, stride=side)
        steps = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / steps) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, pixels: Tensor, *, any_size: bool = False, trace: Trace | None = None) -> Tensor:
        """Encode a batch of images.

        Args:
            pixels: Normalized pixels (B, 3, S, S).
            any_size: Whether to allow other image sizes, square or not, with interpolated position embeddings.
            trace: Records states and attention.

        Returns:
            Image states (B, N + 1, D).

        Raises:
            InputError: The images have another size than the configured one, without `any_size`.
        """
        x = self.embed(pixels, any_size=any_size)
        if trace is not None:
            trace.hidden.append(x)
        for block in self.blocks:
            x = block(x, trace)
            if trace is not None:
                trace.hidden.append(x)
        return self.norm(x)

    def embed(self, pixels: Tensor, *, any_size: bool = False) -> Tensor:
        """Return the input (B, N + 1, D) of the first block: class token and patches, with positions.

        A hybrid ViT also accepts the output (B, T, G, G) of its stem's trunk, which a cache of views stores.
        """
        height, width = pixels.shape[-2:]
        cached = self.stem is not None and pixels.shape[1] == self.stem.config.trunk_width
        size = self.config.grid if cached else self.config.image_size
        if (height, width) != (size, size) and not any_size:
            raise InputError(
                f"images must have {size} x {size} pixels, got {height} x {width}; resize them, load the model with "
                "image_size=..., or use any_size=True for interpolated positions"
            )
        x = pixels.to(self.patch_embed.weight.dtype)
        patches = self.patch_embed(x if self.stem is None else self.stem(x))  # (B, D, rows, columns)
        positions = resize_positions(self.pos_embed, patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + positions


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig, path_rate: float) -> None:
        super().__init__()
        self.path_rate = path_rate
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = FusedSelfAttention(config.width, config.heads, config.attention_dropout)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Return states (B, N + 1, D) of states (B, N + 1, D)."""
        x = x + drop_path(self.attn(self.norm1(x), trace), self.path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.path_rate, self.training)


class FusedSelfAttention(nn.Module):
    """Self-attention with one projection to queries, keys and values, in this order."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Return states (B, N + 1, D) of states (B, N + 1, D)."""
        qkv = apply_linear(self.qkv, x).view(*x.shape[:2], 3, self.heads, -1)  # (B, N, 3, H, K)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, K)
        record = trace.self_weights if trace is not None and trace.attention else None
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, None, dropout, record)
        return apply_linear(self.proj, mixed.transpose(1, 2).flatten(2))  # (B, N, D)


def resize_positions(pos_embed: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolate position embeddings to another grid of patches: bicubic, without antialiasing.

    Args:
        pos_embed: Position embeddings (1, N + 1, D) of a square grid; the position of the class token is not changed.
        rows: Number of rows of the new grid.
        columns: Number of columns of the new grid.

    Returns:
        Position embeddings (1, rows * columns + 1, D).

    Raises:
        InputError: The grid of `pos_embed` is not square.
    """
    patches = pos_embed.shape[1] - 1
    side = math.isqrt(patches)
    if (rows, columns) == (side, side):
        return pos_embed
    if side * side != patches:
        raise InputError(f"the position embeddings must be of a square grid, got {patches} patches")
    grid = pos_embed[:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    grid = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False).to(grid.dtype)
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
