"""The momentum encoder and feature queues of ITC (paper section 3.2, after ALBEF and MoCo)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.model.matcher import Matcher
from openblip.model.text import TextLayer
from openblip.training.sharding import local_shard


class MomentumTwin(nn.Module):
    """A slow copy of both encoders and both projections, which no optimizer changes.

    As in the published code it follows train mode, so its dropout and drop path are active during training.

    Args:
        model: The model to follow.
        momentum: Share of the old weights that each move keeps.

    Attributes:
        moved_by_strategy: Whether the training strategy calls `move`, before the forward, instead of the objective.
    """

    def __init__(self, model: Matcher, momentum: float = 0.995) -> None:
        super().__init__()
        self.momentum = momentum
        self.moved_by_strategy = False
        self.vision = copy.deepcopy(model.vision)
        self.text = copy.deepcopy(model.text)
        for layer in self.text.layers:
            if isinstance(layer, TextLayer) and layer.shared_decoder:  # embeddings do not use the decoder's attention
                del layer.decoder_attn, layer.decoder_norm
                layer.shared_decoder = False
        self.vision_proj = copy.deepcopy(model.vision_proj)
        self.text_proj = copy.deepcopy(model.text_proj)
        self.requires_grad_(False)

    def update(self, model: Matcher) -> None:
        """Move the twin in a training forward, unless the training strategy does so."""
        if not self.moved_by_strategy:
            self.move(model)

    @torch.no_grad()
    def move(self, model: Matcher) -> None:
        """Move every weight a small step toward its counterpart in `model`; each process moves its own shards."""
        online = dict(model.named_parameters())
        pairs = [(local_shard(slow), local_shard(online[name])) for name, slow in self.named_parameters()]
        torch._foreach_lerp_(
            [slow for slow, _ in pairs], [fast.to(slow.dtype) for slow, fast in pairs], 1.0 - self.momentum
        )

    @torch.no_grad()
    def embed(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalized momentum features (B, E) of images, and of texts whose first token is [CLS]."""
        image = F.normalize(self.vision_proj(self.vision(pixels)[:, 0]), dim=-1)
        text = F.normalize(self.text_proj(self.text.encode(ids, mask)[:, 0]), dim=-1)
        return image, text


class FeatureQueue(nn.Module):
    """The newest `size` momentum features of images and texts, with the ids of their images for retrieval.

    Shapes follow the published checkpoints: features are columns, (E, size); unused ids are -100.

    Args:
        width: Embedding width E.
        size: Number of features to keep.

    Raises:
        ConfigError: If `size` is less than 1.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, width: int, size: int = 57600) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"queue_size must be at least 1, got {size}")
        self.register_buffer("image", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("text", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("ids", torch.full((1, size), -100))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, ids: Tensor | None = None) -> None:
        """Replace the oldest features by a batch (B, E), wrapping around at the end.

        The published code requires that the batch divides the queue; here a batch may have any size up to the queue's.

        Args:
            image: Image features (B, E).
            text: Text features (B, E).
            ids: Ids (B,) of the images.

        Raises:
            InputError: If the batch is larger than the queue.
        """
        batch, size = len(image), self.image.shape[1]
        if batch > size:
            raise InputError(f"queue_size must be at least the batch of {batch}, got {size}")
        columns = (self.pointer + torch.arange(batch, device=image.device)) % size
        self.image[:, columns] = image.T.to(self.image.dtype)
        self.text[:, columns] = text.T.to(self.text.dtype)
        if ids is not None:
            self.ids[0, columns] = ids
        self.pointer.copy_((self.pointer + batch) % size)
