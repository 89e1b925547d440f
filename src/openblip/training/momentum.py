"""The momentum encoder and feature queues of ITC (paper section 3.2, after ALBEF and MoCo)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.model.matcher import Matcher
from openblip.model.text import TextLayer, TextTransformer
from openblip.training.shards import local


class MomentumTwin(nn.Module):
    """A slow copy of what makes embeddings: both encoders and both projections. It is never stepped by an optimizer.

    As in the published code it follows train mode, so dropout and drop path are active in it during training.
    ``held`` leaves moving it to who trains: sharded training does so before the forward.
    """

    def __init__(self, model: Matcher, momentum: float = 0.995) -> None:
        super().__init__()
        self.momentum = momentum
        self.held = False
        self.vision = copy.deepcopy(model.vision)
        self.text = _encoder_only(copy.deepcopy(model.text))
        self.vision_proj = copy.deepcopy(model.vision_proj)
        self.text_proj = copy.deepcopy(model.text_proj)
        self.requires_grad_(False)

    def update(self, model: Matcher) -> None:
        """What the objective calls in every training forward: :meth:`move`, unless the twin is held."""
        if not self.held:
            self.move(model)

    @torch.no_grad()
    def move(self, model: Matcher) -> None:
        """Move every weight a small step towards its twin in ``model``; in shards, each process moves its own."""
        pairs = [(local(slow), local(fast)) for slow, fast in self._pairs(model)]
        torch._foreach_lerp_(
            [slow for slow, _ in pairs], [fast.to(slow.dtype) for slow, fast in pairs], 1.0 - self.momentum
        )

    @torch.no_grad()
    def embed(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised momentum features (B, E) of images and of texts, whose first token is [CLS]."""
        image = F.normalize(self.vision_proj(self.vision(pixels)[:, 0]), dim=-1)
        text = F.normalize(self.text_proj(self.text.encode(ids, mask)[:, 0]), dim=-1)
        return image, text

    def _pairs(self, model: Matcher) -> Iterator[tuple[Tensor, Tensor]]:
        online = dict(model.named_parameters())
        for name, slow in self.named_parameters():
            yield slow, online[name]


class FeatureQueue(nn.Module):
    """The last ``size`` momentum features of images and texts, with the ids of their images if asked for.

    Shapes follow the published checkpoints: features are columns, (E, size); unused ids are -100.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, width: int, size: int = 57600) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"the queue must hold at least one feature, not {size}")
        self.register_buffer("image", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("text", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("ids", torch.full((1, size), -100))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, ids: Tensor | None = None) -> None:
        """Replace the oldest features by those of a batch (B, E), wrapping around at the end.

        The published code demands that the batch divide the queue; here a batch may be of any size up to it.
        """
        batch, size = len(image), self.image.shape[1]
        if batch > size:
            raise InputError(f"a batch of {batch} does not fit a queue of {size}")
        places = (self.pointer + torch.arange(batch, device=image.device)) % size
        self.image[:, places] = image.T.to(self.image.dtype)
        self.text[:, places] = text.T.to(self.text.dtype)
        if ids is not None:
            self.ids[0, places] = ids
        self.pointer.copy_((self.pointer + batch) % size)


def _encoder_only(text: TextTransformer) -> TextTransformer:
    """Drop the decoder's self-attention, which no embedding passes through, from a copied stack."""
    for layer in text.layers:
        if isinstance(layer, TextLayer) and layer.shared_decoder:
            del layer.decoder_attn, layer.decoder_norm
            layer.shared_decoder = False
    return text
