"""Memory and speed: activations computed again or memory kept, and layers compiled. No parameter changes its name."""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from openblip.errors import ConfigError
from openblip.model.base import ImageTextModel
from openblip.model.text import TextLayer
from openblip.model.vision import Block


def recompute_vision(model: ImageTextModel, blocks: int) -> None:
    """Keep no activations inside the last ``blocks`` of the image encoder, whose backward computes them again.

    As published, a block's attention and its MLP are wrapped apart, so that only what lies between them is kept.
    """
    layers = cast("list[Block]", list(model.vision.blocks))
    if not 0 <= blocks <= len(layers):
        raise ConfigError(f"the image encoder has {len(layers)} blocks; {blocks} of them cannot be recomputed")
    for block in layers[len(layers) - blocks :]:
        for part in (block.attn, block.mlp):
            # The instance's own forward: a wrapping module would change the names of parameters.
            cast(Any, part).forward = partial(checkpoint, part.forward, use_reentrant=False)


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compile every layer of the image encoder and of the text transformers; how many there are.

    Layers of one kind share their code, so that this compiles little, and what lies between them (draws of negatives,
    texts of changing length) stays in Python.
    """
    layers = [module for module in model.modules() if isinstance(module, Block | TextLayer)]
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)


_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of mallopt, in glibc's malloc.h


def keep_memory() -> bool:
    """Let this process keep what it frees for its next allocation, where the C library is glibc; whether it does.

    By default glibc asks the system for each tensor of some size and gives it back at once, and the system clears every
    page again: on a CPU that took more than half of a training step.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    most = 32 << 20  # the greatest threshold that glibc takes
    return all(
        mallopt(*pair) for pair in ((_MMAP_THRESHOLD, most), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 16 * most))
    )
