"""The image encoder: a vision transformer (Dosovitskiy et al. 2021), as BLIP uses it (paper section 3.1).

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


class VisionTransformer(nn.Module):
    """Pixels (B, 3, S, S), normalised, to N + 1 tokens (B, N + 1, D), class token first, after one final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        steps = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / steps) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.apply(_init)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, pixels: Tensor, *, any_size: bool = False, trace: Trace | None = None) -> Tensor:
        """Encode a batch of images.

        Raises :class:`InputError` for another size than the configured one, unless ``any_size`` asks for position
        embeddings interpolated to the grid at hand (which need not be square).
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
        """Patches, class token and positions: the (B, N + 1, D) input of the first block."""
        height, width = pixels.shape[-2:]
        size = self.config.image_size
        if (height, width) != (size, size) and not any_size:
            raise InputError(
                f"this model reads images of {size} x {size} pixels, not {height} x {width}; resize them, load it with "
                "image_size=..., or ask for interpolated positions"
            )
        patches = self.patch_embed(pixels.to(self.patch_embed.weight.dtype))  # (B, D, rows, columns)
        positions = resize_positions(self.pos_embed, patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + positions


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: VisionConfig, path_rate: float) -> None:
        super().__init__()
        self.path_rate = path_rate
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = FusedSelfAttention(config.width, config.heads, config.attention_dropout)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        x = x + drop_path(self.attn(self.norm1(x), trace), self.path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.path_rate, self.training)


class FusedSelfAttention(nn.Module):
    """Self-attention whose query, key and value come from one matrix, in this order."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1)  # (B, N, 3, H, K)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, K)
        record = trace.self_weights if trace is not None and trace.attention else None
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, None, dropout, record)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, N, D)


def resize_positions(pos_embed: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings (1, N + 1, D) for a grid of ``rows`` x ``columns`` patches.

    The stored grid must be square; where it is the wanted one, nothing changes. Else bicubic interpolation without
    antialiasing; the class position stays as it is.
    """
    stored = pos_embed.shape[1] - 1
    side = math.isqrt(stored)
    if (rows, columns) == (side, side):
        return pos_embed
    if side * side != stored:
        raise InputError(f"{stored} stored patch positions do not form a square grid")
    grid = pos_embed[:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    grid = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False).to(grid.dtype)
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
