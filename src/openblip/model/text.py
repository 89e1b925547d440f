"""The text transformer of BLIP, MED (paper section 3.1): one stack of layers with three uses.

- [`encode`][openblip.model.text.TextTransformer.encode]: a text encoder, for ITC.
- [`encode_grounded`][openblip.model.text.TextTransformer.encode_grounded]: an image-grounded text encoder, for ITM, VQA
  questions and NLVR2.
- [`decode`][openblip.model.text.TextTransformer.decode]: an image-grounded text decoder, for LM.
  [`step`][openblip.model.text.TextTransformer.step] does the same for a few tokens at a time, with a cache.

The caller chooses the first token of each text ([CLS], [ENC] or [DEC]).

Shapes: B texts, I items (images, or questions; the B / I texts of an item are adjacent), T tokens, M memory tokens,
W memory width, D width, H heads, K = D // H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.model.config import TextConfig
from openblip.model.layers import (
    Attention,
    Mlp,
    Trace,
    causal_bias,
    get_activation,
    hiding_bias,
    padding_bias,
    select_items,
)
from openblip.model.packing import apply_linear, apply_output_matrix

KeysValues = tuple[Tensor, Tensor]
Pair = tuple[object, object]
States = Tensor | tuple[Tensor, Tensor]  # input of cross-attention; a pair of images in the NLVR2 model


@dataclass(frozen=True)
class Memory:
    """Cross-attention keys and values of I items, computed once and shared by all texts about an item.

    Attributes:
        layers: Per layer the keys and values, each (I, H, M, K); in the NLVR2 model a pair of these, one per image.
        bias: Additive padding bias (I, 1, 1, M), or `None` if there is no padding.
    """

    layers: tuple[KeysValues | tuple[KeysValues, KeysValues], ...]
    bias: Tensor | None

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self._first_keys)

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self._first_keys.device

    @property
    def _first_keys(self) -> Tensor:
        keys = self.layers[0][0]
        return keys if isinstance(keys, Tensor) else keys[0]

    def select(self, items: Tensor) -> Memory:
        """Return the memory of the items with these indices, in this order."""

        def pick(value: object) -> object:
            return select_items(value, items) if isinstance(value, Tensor) else tuple(map(pick, cast(Pair, value)))

        bias = None if self.bias is None else self.bias[items]
        return Memory(tuple(cast(KeysValues, pick(layer)) for layer in self.layers), bias)

    def subset(self, items: Sequence[int]) -> Memory:
        """Return the memory of these items, without a copy if they are all items in order."""
        if list(items) == list(range(self.items)):
            return self
        return self.select(torch.tensor(items, device=self.device))

    def concatenate(self, extension: Memory) -> Memory:
        """Append the tokens of another memory, whose items are repetitions of these items.

        Args:
            extension: A memory with a multiple of the number of items; the repetitions of an item are adjacent.

        Returns:
            A memory with the items of `extension`.
        """
        times = extension.items // self.items
        layers = []
        for layer, new_layer in zip(self.layers, extension.layers, strict=True):
            (keys, values), (new_keys, new_values) = cast(KeysValues, layer), cast(KeysValues, new_layer)
            layers.append(
                (
                    torch.cat([keys.repeat_interleave(times, 0), new_keys], dim=2),
                    torch.cat([values.repeat_interleave(times, 0), new_values], dim=2),
                )
            )
        bias = torch.cat([self._bias_or_zeros().repeat_interleave(times, 0), extension._bias_or_zeros()], dim=-1)
        return Memory(tuple(layers), bias)

    def _bias_or_zeros(self) -> Tensor:
        if self.bias is not None:
            return self.bias
        return self._first_keys.new_zeros(self.items, 1, 1, self._first_keys.shape[2])


class Cache:
    """Preallocated self-attention keys and values of the tokens decoded so far.

    Args:
        config: Configuration of the decoder.
        rows: Number of rows.
        capacity: Maximum number of tokens in a row.
        like: A tensor with the device and type of the cache.
    """

    def __init__(self, config: TextConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (config.depth, rows, config.heads, capacity, config.width // config.heads)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Store the keys and values (B, H, t, K) of new tokens; return the keys and values of all tokens so far.

        Raises:
            InputError: The cache is full.
        """
        end = self.length + keys.shape[2]
        check_capacity(self.keys.shape[3], end)
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]`. Rows may repeat, and their number may change."""
        if len(rows) == self.keys.shape[1]:
            used = slice(None, self.length)
            self.keys[:, :, :, used] = self.keys[:, rows, :, used]
            self.values[:, :, :, used] = self.values[:, rows, :, used]
        else:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]


def check_capacity(capacity: int, length: int) -> None:
    """Raise `InputError` if a row of `length` tokens does not fit into a cache."""
    if length > capacity:
        raise InputError(f"a row of the cache holds at most {capacity} tokens, got {length}")


class TextTransformer(nn.Module):
    """Word pieces to states (B, T, D): a post-norm BERT with optional cross-attention and without token types.

    Args:
        config: Configuration of the transformer.
        pooler: Whether to add the pooler of BERT, which only the two-tower model has.
    """

    def __init__(self, config: TextConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TextLayer(config, i) for i in range(config.depth))
        self.pooler = nn.Linear(config.width, config.width) if pooler else None
        self.apply(_init_weights)

    def encode(self, ids: Tensor, mask: Tensor | None = None, *, trace: Trace | None = None) -> Tensor:
        """Encode text alone, with attention in both directions.

        Args:
            ids: Token ids (B, T).
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            trace: Records states and attention.

        Returns:
            States (B, T, D).
        """
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
        """Encode text that attends to an image, with attention in both directions.

        Args:
            ids: Token ids (B, T).
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            memory: Image states (I, M, W), or the result of `project` for them.
            memory_mask: 1 for tokens, 0 for padding of image states (I, M).
            trace: Records states and attention.

        Returns:
            States (B, T, D).
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
        """Encode embedded states (B, T, D) in place of ids; see `encode` and `encode_grounded`. Grounding uses it."""
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
        """Decode all positions at once, for training and scoring. A token attends to the tokens up to itself.

        Args:
            ids: Token ids (B, T).
            mask: 1 for tokens, 0 for padding (B, T); `None` if there is no padding.
            memory: States of images or questions (I, M, W), or the result of `project` for them; `None` without.
            memory_mask: 1 for tokens, 0 for padding of the memory (I, M).
            trace: Records states and attention.

        Returns:
            States (B, T, D).
        """
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
        """Decode embedded states (B, T, D) in place of ids; see `decode`.

        With a `cache`, the states follow the cached tokens and are appended to them; `mask` (B, S) then covers all S
        tokens.
        """
        start = 0 if cache is None else cache.length
        bias = causal_bias(start + x.shape[1], x.dtype, x.device, mask)[:, :, start:]
        states = self.run(x, bias, memory, memory_mask, causal=True, cache=cache, trace=trace)
        if cache is not None:
            cache.length += x.shape[1]
        return states

    def decode_packed(self, ids: Tensor, positions: Tensor, visible: Tensor, memory: Memory) -> Tensor:
        """Decode texts with shared prefixes, packed in one sequence, for every item.

        Args:
            ids: Token ids (T,).
            positions: Position of each token in its text (T,).
            visible: Whether token t attends to token s, `visible[t, s]` (T, T): to itself and to the earlier tokens of
                its text.
            memory: Cross-attention keys and values of the items.

        Returns:
            States (I, T, D).
        """
        bias = hiding_bias(~visible[None, None], self.dtype)
        x = self.embeddings(ids[None], positions=positions[None]).expand(memory.items, -1, -1)
        return self.run(x, bias, memory, None, causal=True)

    def step(self, ids: Tensor, memory: Memory | None, cache: Cache) -> Tensor:
        """Decode the tokens after the cached ones, and append them to the cache.

        Args:
            ids: Token ids (B, t).
            memory: Cross-attention keys and values of the items.
            cache: Self-attention keys and values of the previous tokens.

        Returns:
            States (B, t, D).
        """
        x = self.embeddings(ids, start=cache.length)
        new = ids.shape[1]
        bias = None  # a single token attends to all tokens before it
        if new > 1:
            bias = causal_bias(cache.length + new, x.dtype, x.device)[:, :, cache.length :]
        x = self.run(x, bias, memory, None, causal=True, cache=cache)
        cache.length += new
        return x

    def project(self, states: States, mask: Tensor | None = None, *, for_steps: bool = False) -> Memory:
        """Compute the cross-attention keys and values of all layers.

        Args:
            states: States of images or questions (I, M, W); a pair in the NLVR2 model.
            mask: 1 for tokens, 0 for padding (I, M); `None` if there is no padding.
            for_steps: Whether `step` will read them, which has few queries per item: on a CPU they are stored such that
                it reads them in order.

        Returns:
            The memory that texts attend to.

        Raises:
            ConfigError: The transformer has no cross-attention.
        """
        self._check_cross_attention()
        dtype = (states if isinstance(states, Tensor) else states[0]).dtype
        bias = None if mask is None else padding_bias(mask, dtype)
        return Memory(tuple(layer.project_keys_values(states, for_steps) for layer in self._layers), bias)

    def pool(self, states: Tensor) -> Tensor:
        """Return the pooled first token (B, D) of states (B, T, D): a linear layer and tanh.

        Raises:
            ConfigError: The transformer was built without a pooler.
        """
        if self.pooler is None:
            raise ConfigError("pooling needs a text transformer that is built with pooler=True")
        return torch.tanh(self.pooler(states[:, 0]))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embeddings.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the states."""
        return self.embeddings.norm.weight.dtype

    def _check_cross_attention(self) -> None:
        if self.config.memory_width is None:
            raise ConfigError(
                "image-grounded text needs cross-attention, but memory_width of this text transformer is None"
            )

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
        """Run all layers. The methods above prepare its arguments.

        Args:
            x: Embedded states (B, T, D).
            bias: Additive self-attention bias, broadcastable to (B, H, T, S); S is T plus the number of cached tokens.
            memory: States (I, M, W), or their projection; `None` skips cross-attention.
            memory_mask: 1 for tokens, 0 for padding of states (I, M).
            causal: Whether to use the self-attention of the decoder, where a layer has two.
            cache: Self-attention keys and values of the previous tokens; the caller advances its length.
            trace: Records states and attention.

        Returns:
            States (B, T, D).
        """
        projected = memory if isinstance(memory, Memory) else None
        states = None if isinstance(memory, Memory) else memory
        if memory is not None:
            self._check_cross_attention()
        if projected is not None and memory_mask is not None:
            raise InputError("memory_mask must be None with a projected memory, which has its own mask")
        memory_bias = projected.bias if projected else None
        if memory_mask is not None:
            memory_bias = padding_bias(memory_mask, x.dtype)
        if trace is not None:
            trace.hidden.append(x)
        for index, layer in enumerate(self._layers):
            layer_memory = projected.layers[index] if projected else states
            x = layer(x, bias, layer_memory, memory_bias, causal=causal, cache=cache, trace=trace)
            if trace is not None:
                trace.hidden.append(x)
        return x


class Embeddings(nn.Module):
    """The sum of word and position embeddings, normalized."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word: nn.Embedding = MetaSafeEmbedding(config.vocab_size, config.width, padding_idx=config.pad_id)
        self.position = MetaSafeEmbedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Embed token ids.

        Args:
            ids: Token ids (B, T).
            start: Position of the first token.
            positions: Positions of the tokens, in place of consecutive ones.

        Returns:
            States (B, T, D).
        """
        return self.embed(self.word(ids), start, positions)

    def embed(self, words: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Embed word vectors (B, T, D) in place of ids; see `forward`.

        Raises:
            InputError: A position is beyond the maximum.
        """
        end = start + words.shape[1] if positions is None else int(positions.max()) + 1
        if end > self.position.num_embeddings:
            raise InputError(f"a text must have at most {self.position.num_embeddings} tokens, got {end}")
        position = self.position.weight[start:end] if positions is None else self.position(positions)
        return self.dropout(self.norm(words + position))


class MetaSafeEmbedding(nn.Embedding):
    """An embedding without random initialization on the meta device, which would make PyTorch import its compiler."""

    def reset_parameters(self) -> None:
        """Initialize the weights, unless they are on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()


class TextLayer(nn.Module):
    """Self-attention, cross-attention if there is a memory, and MLP, each followed by addition and normalization."""

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
            has_two_memories = config.memories == 2
            self.cross_attn = TwinCrossAttention(config, index) if has_two_memories else CrossAttention(config)
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
        """Run the layer.

        Args:
            x: States (B, T, D).
            bias: Additive self-attention bias.
            memory: States for cross-attention, or their keys and values in this layer.
            memory_bias: Additive cross-attention bias (I, 1, 1, M).
            causal: Whether to use the self-attention of the decoder, where the layer has two.
            cache: Self-attention keys and values of the previous tokens.
            trace: Records attention.

        Returns:
            States (B, T, D).
        """
        as_decoder = causal and self.shared_decoder
        attn, norm = (self.decoder_attn, self.decoder_norm) if as_decoder else (self.self_attn, self.self_norm)
        records = trace if trace is not None and trace.attention else None
        keys_values = attn.project_keys_values(x)
        if cache is not None:
            keys_values = cache.append(self.index, *keys_values)
        x = norm(x + self.dropout(attn(x, keys_values, bias, records.self_weights if records else None)))
        if memory is not None:
            mixed = self.cross_attn(x, memory, memory_bias, records.cross_weights if records else None)
            x = self.cross_norm(x + self.dropout(mixed))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))

    def project_keys_values(
        self, states: States, for_steps: bool = False
    ) -> KeysValues | tuple[KeysValues, KeysValues]:
        """Return the cross-attention keys and values of states in this layer; see `TextTransformer.project`."""
        if isinstance(states, tuple):
            return cast(TwinCrossAttention, self.cross_attn).project_keys_values(states)
        cross_attn = cast(CrossAttention, self.cross_attn)
        return cross_attn.project_for_steps(states) if for_steps else cross_attn.project_keys_values(states)


class CrossAttention(Attention):
    """Attention from text to the tokens of an image or, in the answer decoder, of a question."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config.width, config.heads, config.memory_width, config.attention_dropout)

    def forward(
        self, x: Tensor, memory: Tensor | KeysValues, bias: Tensor | None, record: list[Tensor] | None = None
    ) -> Tensor:
        """Attend to states, or to their keys and values; see `Attention.forward`."""
        keys, values = self.project_keys_values(memory) if isinstance(memory, Tensor) else memory
        if record is not None and len(keys) != len(x):  # records are per text, so repeat the keys for each text
            times = len(x) // len(keys)
            keys, values = keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)
            bias = None if bias is None else bias.repeat_interleave(times, 0)
        return super().forward(x, (keys, values), bias, record)


class TwinCrossAttention(nn.Module):
    """Cross-attention to two images (NLVR2), merged by the mean or, in the upper layers, by a learned projection.

    The published code creates an activation for the merge without applying it; there is none here either.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.first = CrossAttention(config)
        self.second = CrossAttention(config)
        self.merge = nn.Linear(2 * config.width, config.width) if index >= config.merge_from else None

    def project_keys_values(self, states: tuple[Tensor, Tensor]) -> tuple[KeysValues, KeysValues]:
        """Return the keys and values of the states of two images, each (I, M, W)."""
        return self.first.project_keys_values(states[0]), self.second.project_keys_values(states[1])

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor] | tuple[KeysValues, KeysValues],
        bias: Tensor | None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend to two images; see `Attention.forward`."""
        first = self.first(x, memory[0], bias, record)
        second = self.second(x, memory[1], bias, record)
        if self.merge is None:
            return (first + second) / 2
        return self.merge(torch.cat([first, second], dim=-1))


class LanguageHead(nn.Module):
    """States to logits over the vocabulary. The output matrix is the word embedding of the decoder."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = get_activation(config.activation)
        self.apply(_init_weights)

    def forward(self, states: Tensor, word: nn.Module) -> Tensor:
        """Compute logits.

        Args:
            states: States (..., D).
            word: Word embedding of the decoder, or its 8-bit form.

        Returns:
            Logits (..., V).
        """
        states = self.norm(self.activation(apply_linear(self.dense, states)))
        if isinstance(word, nn.Embedding):
            return apply_output_matrix(word, self.bias, states)
        return cast(Any, word).scores(states, self.bias)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_meta:
        return  # there is nothing to initialize, and drawing random numbers would take seconds
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
