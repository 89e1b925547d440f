"""The CNN of a hybrid ViT, whose feature map stands for the patches (Dosovitskiy et al. 2021, section 3.1).

EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation and with ReLU6), without its classifier. Batch norms
are folded into the convolutions when the published weights are imported, so a convolution here has a bias and nothing
depends on the batch.

Shapes: B images, S image size, G = S / 32 cells along a side, T trunk width, C head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import InputError
from openblip.model.config import StemConfig


class EfficientNetLite(nn.Module):
    """Pixels (B, 3, S, S) to a feature map (B, C, G, G).

    `trunk` and `head` are its two halves. A cache of fixed views stores the narrow output of the trunk;
    `forward` takes either and knows them apart by their channels.
    """

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = SameConv(3, config.first_width, 3, stride=2)
        self.blocks = nn.ModuleList(InvertedResidual(*sizes) for sizes in config.blocks)
        self.conv_out = nn.Conv2d(config.trunk_width, config.head_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map (B, C, G, G) of pixels (B, 3, S, S), or of the trunk's output (B, T, G, G)."""
        channels = x.shape[1]
        if channels not in (3, self.config.trunk_width):
            raise InputError(f"the stem reads 3 or {self.config.trunk_width} channels, got {channels}")
        return self.head(self.trunk(x) if channels == 3 else x)

    def trunk(self, pixels: Tensor) -> Tensor:
        """The output (B, T, G, G) of the last block, a linear bottleneck."""
        x = pixels.contiguous(memory_format=torch.channels_last)  # in which a CPU convolves fastest
        x = F.relu6(self.conv_in(x))
        for block in self.blocks:
            x = block(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """The widened feature map (B, C, G, G), in which ImageNet's classes are nearly linear."""
        return F.relu6(self.conv_out(x))


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow (MobileNetV2's block); added to its input where the shapes agree."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.expand = nn.Conv2d(width_in, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = nn.Conv2d(hidden, width_out, 1)
        self.adds = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter and project the channels: (B, C, H, W) to (B, D, H / stride, W / stride)."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = F.relu6(self.depthwise(hidden))
        narrow = self.project(hidden)
        return x + narrow if self.adds else narrow


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": ceil(S / stride) outputs, the odd pixel at the right and bottom."""

    def __init__(self, width_in: int, width_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width_out, kernel, stride=stride, groups=groups)
        self.side, self.step = kernel, stride

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the padding of TensorFlow, which is larger at the bottom and the right."""
        down, across = (max((-(-size // self.step) - 1) * self.step + self.side - size, 0) for size in input.shape[-2:])
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
        return super().forward(F.pad(input, padding))
