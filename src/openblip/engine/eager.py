"""The reference engine: plain PyTorch, the same modules that training uses."""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.model.text import Cache, LanguageHead, Memory, TextTransformer


class EagerSession:
    """One decoding run of a text transformer and its language head (:class:`openblip.decoding.protocol.Session`).

    ``memory`` holds the items; ``None`` decodes without anything to read and needs ``items``. ``capacity`` is the most
    tokens that will be fed to a row.
    """

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        capacity: int,
        items: int | None = None,
    ) -> None:
        self.text = text
        self.head = head
        self.memory = memory
        self.width = 1
        rows = memory.items if memory is not None else items or 1
        self.cache = Cache(text.config, rows, capacity, like=text.embeddings.word.weight)

    def step(self, ids: Tensor) -> Tensor:
        states = self.text.step(ids, self.memory, self.cache)
        return self.head(states[:, -1], self.text.embeddings.word).float()

    def widen(self, width: int) -> None:
        items = self.cache.keys.shape[1]
        self.cache.select(torch.arange(items, device=self.cache.keys.device).repeat_interleave(width))
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        self.cache.select(rows)

    def keep(self, items: Tensor) -> None:
        offsets = torch.arange(self.width, device=items.device)
        self.cache.select((items[:, None] * self.width + offsets).flatten())
        if self.memory is not None:
            self.memory = self.memory.select(items)
