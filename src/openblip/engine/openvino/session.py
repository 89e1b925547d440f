"""Decoding over converted parts. The caches stay in Python; OpenVINO reads them in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.decoding.rank import PackedDecoder
from openblip.engine.openvino.compiled import CompiledPart
from openblip.engine.parts import flatten_memory
from openblip.model.config import TextConfig
from openblip.model.layers import causal_bias, hiding_bias
from openblip.model.text import Memory, check_capacity


class OpenVinoSession:
    """A decoding run; see [`Session`][openblip.decoding.protocol.Session].

    Args:
        step: The converted decoder step.
        config: Configuration of the decoder.
        memory: Cross-attention keys and values of the items.
        capacity: Maximum number of tokens in a row.
    """

    def __init__(self, step: CompiledPart, config: TextConfig, memory: Memory, capacity: int) -> None:
        self.part = step
        self.memory = memory
        self.width = 1
        self.length = 0
        # Zeros, not uninitialized memory: hidden positions are multiplied by 0, and 0 * NaN is NaN.
        shape = (config.depth, memory.items, config.heads, capacity, config.width // config.heads)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self._spare = torch.empty(shape)  # where `reorder` writes

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (rows, t) to all rows; return the logits (rows, V) of the next token."""
        new, capacity = ids.shape[1], self.keys.shape[3]
        end = self.length + new
        check_capacity(capacity, end)
        positions = torch.arange(self.length, end)
        hidden = hiding_bias(torch.arange(capacity) >= self.length, torch.float32).expand(1, 1, new, capacity)
        bias = torch.cat([hidden, causal_bias(new, torch.float32, self.keys.device)], 3)
        inputs = (ids, positions, self.keys, self.values, bias, *flatten_memory(self.memory, bias=True))
        with self.part.run(*inputs) as (logits, keys, values):
            self.keys[:, :, :, self.length : end] = keys
            self.values[:, :, :, self.length : end] = values
            self.length = end
            return logits.clone()

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        self._select(torch.arange(self.keys.shape[1]).repeat_interleave(width))
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]` of the same item."""
        self.keys, self._spare = torch.index_select(self.keys, 1, rows, out=self._spare), self.keys
        self.values, self._spare = torch.index_select(self.values, 1, rows, out=self._spare), self.values

    def keep(self, items: Tensor) -> None:
        """Drop all items except these."""
        self._select((items[:, None] * self.width + torch.arange(self.width)).flatten())
        self.memory = self.memory.select(items)

    def _select(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self._spare = torch.empty_like(self.keys)


@dataclass(frozen=True, kw_only=True)
class OpenVinoPackedDecoder(PackedDecoder):
    """A packed decoder in OpenVINO."""

    part: CompiledPart

    def logits(self, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Return the logits (I, T, V) after each token; see the base class."""
        bias = hiding_bias(~visible[None, None], torch.float32)
        return self.part(ids[None], positions, bias, *flatten_memory(self.memory, bias=True))[0]
