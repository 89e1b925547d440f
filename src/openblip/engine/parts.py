"""Pieces of a model as functions of tensors, for engines that cannot run Python code.

Each piece is the computation between two decisions in Python. The pieces share the modules of the model.

Shapes: B texts or rows, I items (the rows of an item are adjacent), T or t tokens, C capacity of a cache, M memory
tokens, L layers, H heads, D width, K = D // H, V vocabulary. `memory` is the keys and values of each layer in turn,
each (I, H, M, K).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.model.matcher import Matcher
from openblip.model.text import KeysValues, LanguageHead, Memory, TextTransformer
from openblip.model.vision import VisionTransformer


class Vision(nn.Module):
    """Pixels (I, 3, S, S) to image states (I, M, D)."""

    def __init__(self, vision: VisionTransformer) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image states (I, M, D)."""
        return self.vision(pixels)


class Projection(nn.Module):
    """States (I, M, D) to the keys and values of all layers, each (I, H, M, K), stored in a type."""

    def __init__(self, text: TextTransformer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.text, self.dtype = text, dtype

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values of all layers."""
        layers = cast("tuple[KeysValues, ...]", self.text.project(states).layers)
        return tuple(tensor.to(self.dtype) for layer in layers for tensor in layer)


class GroundedEncoder(nn.Module):
    """Ids (B, T), their padding bias (B, 1, 1, T) and a memory to text states (B, T, D)."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, ids: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """Return text states (B, T, D)."""
        return self.text.run(_embed(self.text, ids), bias, to_memory(memory), None)


class Match(nn.Module):
    """Ids (B, T), their padding bias (B, 1, 1, T) and a memory to the probability (B,) of a match."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.text, self.head = model.text, model.itm_head

    def forward(self, ids: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """Return probabilities (B,)."""
        states = self.text.run(_embed(self.text, ids), bias, to_memory(memory), None)
        return self.head(states[:, 0]).softmax(-1)[:, 1]


class TextEmbedding(nn.Module):
    """Ids (B, T) and their padding bias (B, 1, 1, T) to L2-normalized embeddings (B, E)."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.text, self.proj = model.text, model.text_proj

    def forward(self, ids: Tensor, bias: Tensor) -> Tensor:
        """Return embeddings (B, E)."""
        states = self.text.run(_embed(self.text, ids), bias, None, None)
        return nn.functional.normalize(self.proj(states[:, 0]), dim=-1)


class ImageEmbedding(nn.Module):
    """States (I, M, D), of which only the class token is needed, to L2-normalized embeddings (I, E)."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.proj = model.vision_proj

    def forward(self, states: Tensor) -> Tensor:
        """Return embeddings (I, E)."""
        return nn.functional.normalize(self.proj(states[:, 0]), dim=-1)


class Step(nn.Module):
    """The next tokens of all rows to logits (B, V) after the last one, and their keys and values (L, B, H, t, K)."""

    def __init__(self, text: TextTransformer, head: LanguageHead) -> None:
        super().__init__()
        self.text, self.head = text, head

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        padding: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode ids (B, t).

        Args:
            ids: Next tokens of each row (B, t).
            positions: Positions of the tokens (t,).
            keys: Keys of the previous tokens (L, B, H, C, K).
            values: Values of the previous tokens (L, B, H, C, K).
            bias: Additive attention bias (1, 1, t, C + t) over the previous and the next tokens.
            padding: Additive bias of the memory (I, 1, 1, M).
            memory: Keys and values of each layer in turn.
        """
        cache = _RecordingCache(keys, values)
        x = _embed(self.text, ids, positions)
        x = self.text.run(x, bias, to_memory(memory, padding), None, causal=True, cache=cast(Any, cache))
        logits = self.head(x[:, -1], self.text.embeddings.word)
        return logits, torch.stack(cache.new_keys), torch.stack(cache.new_values)


class PackedStep(nn.Module):
    """Texts packed in one sequence of ids (1, T) to logits (I, T, V)."""

    def __init__(self, text: TextTransformer, head: LanguageHead) -> None:
        super().__init__()
        self.text, self.head = text, head

    def forward(self, ids: Tensor, positions: Tensor, bias: Tensor, padding: Tensor, *memory: Tensor) -> Tensor:
        """Return logits (I, T, V)."""
        x = _embed(self.text, ids, positions).expand(memory[0].shape[0], -1, -1)
        states = self.text.run(x, bias, to_memory(memory, padding), None, causal=True)
        return self.head(states, self.text.embeddings.word)


class _RecordingCache:
    """A cache that records the new keys and values, and does not write to the previous ones."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Record new keys and values; return them after the previous ones."""
        self.new_keys.append(keys)
        self.new_values.append(values)
        return torch.cat([self.keys[layer], keys], 2), torch.cat([self.values[layer], values], 2)


def _embed(text: TextTransformer, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Embed ids without the check of their number, which conversion cannot follow."""
    table = text.embeddings
    if positions is None:
        positions = torch.arange(ids.shape[1])
    return table.norm(table.word(ids) + table.position(positions))


def to_memory(tensors: Sequence[Tensor], bias: Tensor | None = None) -> Memory:
    """Return the memory of keys and values per layer, the inverse of `flatten_memory`."""
    return Memory(tuple(zip(tensors[::2], tensors[1::2], strict=True)), bias)


def flatten_memory(memory: Memory, *, bias: bool = False) -> Iterator[Tensor]:
    """Yield the tensors of a memory: with `bias` the padding bias (I, 1, 1, M), then keys and values per layer."""
    if bias:
        length = cast(KeysValues, memory.layers[0])[0].shape[2]
        yield torch.zeros(memory.items, 1, 1, length) if memory.bias is None else memory.bias
    for keys, values in cast("tuple[KeysValues, ...]", memory.layers):
        yield keys
        yield values
