"""What an engine that cannot run our Python hands to a compiler: pieces of the model as functions of tensors alone.

Each is what runs between two decisions of ours. They share the model's own modules, so there is nothing to keep equal.

Shapes: B texts or rows, I items (an item's rows lie side by side), T or t tokens, C room of a cache, M memory tokens,
L layers, H heads, K = D // H, V vocabulary. ``memory`` is keys and values of every layer in turn, (I, H, M, K) each.
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
    def __init__(self, vision: VisionTransformer) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision(pixels)


class Projection(nn.Module):
    """States (I, M, W) to keys and values of every layer, each (I, H, M, K)."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        layers = cast("tuple[KeysValues, ...]", self.text.project(states).layers)
        return tuple(part for layer in layers for part in layer)


class Grounded(nn.Module):
    """Ids (B, T) and their bias (B, 1, 1, T) to states (B, T, D)."""

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text

    def forward(self, ids: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        return self.text.run(_embedded(self.text, ids), bias, as_memory(memory), None)


class Match(nn.Module):
    """As above, to the probability (B,) of a match."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.text, self.head = model.text, model.itm_head

    def forward(self, ids: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        states = self.text.run(_embedded(self.text, ids), bias, as_memory(memory), None)
        return self.head(states[:, 0]).softmax(-1)[:, 1]


class TextEmbedding(nn.Module):
    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.text, self.proj = model.text, model.text_proj

    def forward(self, ids: Tensor, bias: Tensor) -> Tensor:
        states = self.text.run(_embedded(self.text, ids), bias, None, None)
        return nn.functional.normalize(self.proj(states[:, 0]), dim=-1)


class ImageEmbedding(nn.Module):
    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.proj = model.vision_proj

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(self.proj(states[:, 0]), dim=-1)


class Step(nn.Module):
    """The next tokens of every row: logits (R, V) after the last, and their keys and values (L, R, H, t, K)."""

    def __init__(self, text: TextTransformer, head: LanguageHead) -> None:
        super().__init__()
        self.text, self.head = text, head

    def forward(
        self, ids: Tensor, positions: Tensor, keys: Tensor, values: Tensor, bias: Tensor, padding: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        cache = _Appended(keys, values)
        x = _embedded(self.text, ids, positions)
        x = self.text.run(x, bias, as_memory(memory, padding), None, causal=True, cache=cast(Any, cache))
        logits = self.head(x[:, -1], self.text.embeddings.word)
        return logits, torch.stack(cache.new_keys), torch.stack(cache.new_values)


class Packed(nn.Module):
    """Logits (I, T, V) of packed texts (1, T)."""

    def __init__(self, text: TextTransformer, head: LanguageHead) -> None:
        super().__init__()
        self.text, self.head = text, head

    def forward(self, ids: Tensor, positions: Tensor, bias: Tensor, padding: Tensor, *memory: Tensor) -> Tensor:
        x = _embedded(self.text, ids, positions).expand(memory[0].shape[0], -1, -1)
        states = self.text.run(x, bias, as_memory(memory, padding), None, causal=True)
        return self.head(states, self.text.embeddings.word)


class _Appended:
    """A cache as layers use it, which leaves what is given alone and keeps what is new apart."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """All keys and values: the given ones, then the new ones."""
        self.new_keys.append(keys)
        self.new_values.append(values)
        return torch.cat([self.keys[layer], keys], 2), torch.cat([self.values[layer], values], 2)


def _embedded(text: TextTransformer, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Embeddings without the check of their length, which conversion cannot follow."""
    table = text.embeddings
    places = torch.arange(ids.shape[1]) if positions is None else positions
    return table.norm(table.word(ids) + table.position(places))


def as_memory(parts: Sequence[Tensor], bias: Tensor | None = None) -> Memory:
    return Memory(tuple(zip(parts[::2], parts[1::2], strict=True)), bias)


def flat(memory: Memory, *, bias: bool = False) -> Iterator[Tensor]:
    """A memory as the inputs of a part: with ``bias`` the padding bias (I, 1, 1, M), then keys and values by layer."""
    if bias:
        length = cast(KeysValues, memory.layers[0])[0].shape[2]
        yield torch.zeros(memory.items, 1, 1, length) if memory.bias is None else memory.bias
    for keys, values in cast("tuple[KeysValues, ...]", memory.layers):
        yield keys
        yield values
