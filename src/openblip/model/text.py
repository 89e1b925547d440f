"""The MED text transformer (paper section 3.1): one stack, three ways to call it.

- :meth:`TextTransformer.encode`: a text encoder, for ITC.
- :meth:`TextTransformer.encode_grounded`: an image-grounded text encoder, for ITM, VQA questions and NLVR2.
- :meth:`TextTransformer.decode`: an image-grounded text decoder, for LM; :meth:`TextTransformer.step` does the same a
  few tokens at a time over a cache.

Token ids are taken as they are: which first token ([CLS], [ENC], [DEC]) belongs where is decided by the caller.

Shapes: B texts, I items (B = I * texts per item), T tokens, M memory tokens, D width, H heads, K = D // H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.model.config import TextConfig
from openblip.model.layers import Attention, Mlp, Trace, activation, causal_bias, padding_bias, unseen_bias

KeysValues = tuple[Tensor, Tensor]
States = Tensor | tuple[Tensor, Tensor]  # what cross-attention reads; the NLVR2 model reads two images


@dataclass(frozen=True)
class Memory:
    """Cross-attention keys and values of I items, computed once and shared by every text about an item.

    ``layers[l]`` is (keys, values), each (I, H, M, K); in the NLVR2 model a pair of those. ``bias`` is the additive
    padding bias (I, 1, 1, M) or ``None``.
    """

    layers: tuple[KeysValues | tuple[KeysValues, KeysValues], ...]
    bias: Tensor | None

    @property
    def items(self) -> int:
        """How many items (images, or questions) the memory holds."""
        first = self.layers[0][0]
        return len(first if isinstance(first, Tensor) else first[0])

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        first = self.layers[0][0]
        return (first if isinstance(first, Tensor) else first[0]).device

    def select(self, items: Tensor) -> Memory:
        """The memory of the named items alone, in that order."""

        def pick(part: object) -> object:
            return part[items] if isinstance(part, Tensor) else tuple(pick(p) for p in cast(tuple[object, ...], part))

        bias = None if self.bias is None else self.bias[items]
        return Memory(tuple(cast(KeysValues, pick(layer)) for layer in self.layers), bias)

    def subset(self, items: Sequence[int]) -> Memory:
        """Return the memory of these items, without a copy if they are all items in order."""
        if list(items) == list(range(self.items)):
            return self
        return self.select(torch.tensor(items, device=self.device))

    def before(self, other: Memory) -> Memory:
        """What both hold, one after the other, for the items of ``other``; as many of those share an item of this."""
        times = other.items // self.items
        pairs = zip(cast(Sequence[KeysValues], self.layers), cast(Sequence[KeysValues], other.layers), strict=True)
        layers = tuple(
            (
                torch.cat([keys.repeat_interleave(times, 0), more_keys], dim=2),
                torch.cat([values.repeat_interleave(times, 0), more_values], dim=2),
            )
            for (keys, values), (more_keys, more_values) in pairs
        )
        return Memory(layers, torch.cat([self._seen().repeat_interleave(times, 0), other._seen()], dim=-1))

    def _seen(self) -> Tensor:
        """The bias, zeros where there is no padding."""
        keys = cast(Tensor, self.layers[0][0])
        return keys.new_zeros(self.items, 1, 1, keys.shape[2]) if self.bias is None else self.bias


class Cache:
    """Self-attention keys and values of the tokens decoded so far: preallocated, one per decoding call."""

    def __init__(self, config: TextConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (config.depth, rows, config.heads, capacity, config.width // config.heads)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Store the keys and values (B, H, t, K) of new tokens; return those of all tokens so far."""
        end = self.length + keys.shape[2]
        check_capacity(self.keys.shape[3], end)
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Make row r continue what was row ``rows[r]``; rows may repeat, and fewer or more may remain."""
        used = slice(None, self.length)
        if len(rows) == self.keys.shape[1]:
            self.keys[:, :, :, used] = self.keys[:, rows, :, used]
            self.values[:, :, :, used] = self.values[:, rows, :, used]
        else:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]


def check_capacity(capacity: int, length: int) -> None:
    """Raise :class:`InputError` if ``length`` tokens do not fit into a cache."""
    if length > capacity:
        raise InputError(f"a row of the cache holds at most {capacity} tokens, got {length}")


class TextTransformer(nn.Module):
    """Word pieces to states (B, T, D): a post-norm BERT with optional cross-attention, without token types."""

    def __init__(self, config: TextConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TextLayer(config, i) for i in range(config.depth))
        self.pooler = nn.Linear(config.width, config.width) if pooler else None
        self.apply(_init)

    def encode(self, ids: Tensor, mask: Tensor | None = None, *, trace: Trace | None = None) -> Tensor:
        """Text alone, seen in both directions; ``mask`` (B, T) marks real tokens with 1, ``None`` means all are."""
        return self.encode_embedded(self.embeddings(ids), mask, trace=trace)

    def encode_grounded(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: Memory | States,
        memory_mask: Tensor | None = None,
        *,
        trace: Trace | None = None,
    ) -> Tensor:
        """Text that also reads an image, seen in both directions.

        ``memory`` is the image states (I, M, W), or a :class:`Memory` that :meth:`project` made of them; with fewer
        items than texts, each item's texts lie side by side.
        """
        return self.encode_embedded(self.embeddings(ids), mask, memory, memory_mask, trace=trace)

    def encode_embedded(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Memory | States | None = None,
        memory_mask: Tensor | None = None,
        *,
        trace: Trace | None = None,
    ) -> Tensor:
        """As :meth:`encode` and :meth:`encode_grounded`, from states (B, T, D) instead of ids (grounding uses it)."""
        bias = None if mask is None else padding_bias(mask, x.dtype)
        return self.run(x, bias, memory, memory_mask, trace=trace)

    def decode(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: Memory | States | None,
        memory_mask: Tensor | None = None,
        *,
        trace: Trace | None = None,
    ) -> Tensor:
        """Text that reads an image and sees no later token: all positions at once, for training and scoring."""
        return self.decode_embedded(self.embeddings(ids), mask, memory, memory_mask, trace=trace)

    def decode_embedded(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: Memory | States | None,
        memory_mask: Tensor | None = None,
        *,
        cache: Cache | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """As :meth:`decode`, from embedded states (B, T, D).

        With a ``cache`` they follow the tokens in it and are added to it; ``mask`` (B, S) then covers all S of them.
        """
        before = 0 if cache is None else cache.length
        bias = causal_bias(before + x.shape[1], x.dtype, x.device, mask)[:, :, before:]
        states = self.run(x, bias, memory, memory_mask, causal=True, cache=cache, trace=trace)
        if cache is not None:
            cache.length += x.shape[1]
        return states

    def decode_packed(self, ids: Tensor, positions: Tensor, visible: Tensor, memory: Memory) -> Tensor:
        """Decode a set of texts that share beginnings, packed as one sequence, against every item: (I, T, D).

        Token t of ``ids`` (T,) stands at ``positions[t]`` of its text and sees the tokens that ``visible[t]`` (T, T)
        marks: itself and those before it in the same text.
        """
        bias = unseen_bias(~visible[None, None], self.dtype)
        x = self.embeddings(ids[None], positions=positions[None]).expand(memory.items, -1, -1)
        return self.run(x, bias, memory, None, causal=True)

    def step(self, ids: Tensor, memory: Memory | None, cache: Cache) -> Tensor:
        """Decode ``ids`` (B, t), the tokens that follow those in ``cache``, and add them to it: states (B, t, D)."""
        x = self.embeddings(ids, start=cache.length)
        bias = None
        if (new := ids.shape[1]) > 1:  # a lone token sees everything before it
            bias = causal_bias(cache.length + new, x.dtype, x.device)[:, :, cache.length :]
        x = self.run(x, bias, memory, None, causal=True, cache=cache)
        cache.length += new
        return x

    def project(self, states: States, mask: Tensor | None = None) -> Memory:
        """Cross-attention keys and values of ``states`` (I, M, W), whose real tokens ``mask`` (I, M) marks with 1."""
        self._check_reads()
        first = states if isinstance(states, Tensor) else states[0]
        bias = None if mask is None else padding_bias(mask, first.dtype)
        return Memory(tuple(layer.keys_values(states) for layer in self._layers), bias)

    def pool(self, states: Tensor) -> Tensor:
        """The first token through a dense layer and tanh (B, D): only in models built with a pooler."""
        if self.pooler is None:
            raise ConfigError("this text transformer was built without a pooler")
        return torch.tanh(self.pooler(states[:, 0]))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.embeddings.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What its states are computed in."""
        return self.embeddings.norm.weight.dtype

    def _check_reads(self) -> None:
        if self.config.memory_width is None:
            raise ConfigError("this text transformer has no cross-attention, so it cannot read an image")

    @property
    def _layers(self) -> Sequence[TextLayer]:
        return cast(Sequence[TextLayer], self.layers)

    def run(
        self,
        x: Tensor,
        bias: Tensor | None,
        memory: Memory | States | None,
        memory_mask: Tensor | None,
        *,
        causal: bool = False,
        cache: Cache | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """All layers over embedded states (B, T, D), under a given attention bias: what the methods above come to."""
        projected = memory if isinstance(memory, Memory) else None
        states = None if isinstance(memory, Memory) else memory
        if memory is not None:
            self._check_reads()
        if projected is not None and memory_mask is not None:
            raise InputError("a projected memory carries its own mask")
        memory_bias = projected.bias if projected else None
        if memory_mask is not None:
            memory_bias = padding_bias(memory_mask, x.dtype)
        if trace is not None:
            trace.hidden.append(x)
        for index, layer in enumerate(self._layers):
            read = projected.layers[index] if projected else states
            x = layer(x, bias, read, memory_bias, causal=causal, cache=cache, trace=trace)
            if trace is not None:
                trace.hidden.append(x)
        return x


class Embeddings(nn.Module):
    """Word plus position, normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word: nn.Embedding = Vectors(config.vocab_size, config.width, padding_idx=config.pad_id)
        self.position = Vectors(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Embed ids (B, T) that stand at ``start`` and after, or at ``positions``."""
        return self.embed(self.word(ids), start, positions)

    def embed(self, words: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """As :meth:`forward`, from word vectors (B, T, D)."""
        end = start + words.shape[1] if positions is None else int(positions.max()) + 1
        if end > self.position.num_embeddings:
            raise InputError(
                f"a text of {end} tokens does not fit the model's {self.position.num_embeddings} positions"
            )
        places = self.position.weight[start:end] if positions is None else self.position(positions)
        return self.dropout(self.norm(words + places))


class Vectors(nn.Embedding):
    """An embedding that draws nothing on the meta device, where PyTorch would import its compiler for that."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class TextLayer(nn.Module):
    """Self-attention, cross-attention if there is something to read, MLP; each added, then normalised."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.index = index
        self.self_attn = Attention(width, config.heads, dropout=config.attention_dropout)
        self.self_norm = nn.LayerNorm(width, eps=eps)
        self.shared_decoder = config.shared_decoder
        if config.shared_decoder:
            self.decoder_attn = Attention(width, config.heads, dropout=config.attention_dropout)
            self.decoder_norm = nn.LayerNorm(width, eps=eps)
        if config.memory_width is not None:
            twin = config.memories == 2
            self.cross_attn = TwinCrossAttention(config, index) if twin else CrossAttention(config)
            self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_width, config.activation)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        memory: object | None,
        memory_bias: Tensor | None,
        *,
        causal: bool = False,
        cache: Cache | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """One layer; ``memory`` is the states to read, or the keys and values that cross-attention made of them."""
        as_decoder = causal and self.shared_decoder
        attn, norm = (self.decoder_attn, self.decoder_norm) if as_decoder else (self.self_attn, self.self_norm)
        keep = trace is not None and trace.attention
        keys_values = attn.keys_values(x)
        if cache is not None:
            keys_values = cache.append(self.index, *keys_values)
        x = norm(x + self.dropout(attn(x, keys_values, bias, trace.self_weights if trace and keep else None)))
        if memory is not None:
            mixed = self.cross_attn(x, memory, memory_bias, trace.cross_weights if trace and keep else None)
            x = self.cross_norm(x + self.dropout(mixed))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))

    def keys_values(self, states: States) -> KeysValues | tuple[KeysValues, KeysValues]:
        """What this layer's cross-attention makes of the states it reads."""
        if isinstance(states, tuple):
            return cast(TwinCrossAttention, self.cross_attn).keys_values(states)
        return cast(CrossAttention, self.cross_attn).keys_values(states)


class CrossAttention(Attention):
    """Attention from text to the tokens of one image (or, in the answer decoder, of one question)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.width, config.heads, config.memory_width, config.attention_dropout)

    def forward(  # the memory may come as plain states
        self, x: Tensor, memory: Tensor | KeysValues, bias: Tensor | None, record: list[Tensor] | None = None
    ) -> Tensor:
        keys_values = self.keys_values(memory) if isinstance(memory, Tensor) else memory
        folds = record is not None and len(keys_values[0]) != len(x)
        if folds:  # a record is per text, so the item's keys are repeated for each of its texts
            times = len(x) // len(keys_values[0])
            keys_values = (keys_values[0].repeat_interleave(times, 0), keys_values[1].repeat_interleave(times, 0))
            bias = None if bias is None else bias.repeat_interleave(times, 0)
        return super().forward(x, keys_values, bias, record)


class TwinCrossAttention(nn.Module):
    """NLVR2: one attention per image, merged by the mean or, in the upper layers, by a learned projection.

    The published code builds an activation for the merge and never applies it; neither does this.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.first = CrossAttention(config)
        self.second = CrossAttention(config)
        self.merge = nn.Linear(2 * config.width, config.width) if index >= config.merge_from else None

    def keys_values(self, states: tuple[Tensor, Tensor]) -> tuple[KeysValues, KeysValues]:
        """Keys and values of the two images' states, each (I, M, W)."""
        return self.first.keys_values(states[0]), self.second.keys_values(states[1])

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor] | tuple[KeysValues, KeysValues],
        bias: Tensor | None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        first = self.first(x, memory[0], bias, record)
        second = self.second(x, memory[1], bias, record)
        if self.merge is None:
            return (first + second) / 2
        return self.merge(torch.cat([first, second], dim=-1))


class LanguageHead(nn.Module):
    """States to logits over the vocabulary; the output matrix is the word embedding of the decoder it serves."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = activation(config.activation)
        self.apply(_init)

    def forward(self, states: Tensor, word: nn.Module) -> Tensor:
        """Logits (..., V) of states (..., D); ``word`` is the decoder's embedding of words, or its 8-bit form."""
        states = self.norm(self.activation(self.dense(states)))
        if isinstance(word, nn.Embedding):
            return nn.functional.linear(states, word.weight, self.bias)
        return cast(Any, word).scores(states, self.bias)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_meta:
        return  # nothing to fill, and drawing for nothing takes seconds
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
