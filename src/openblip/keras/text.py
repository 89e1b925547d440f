"""The text transformer of BLIP, MED (paper section 3.1): encoder, image-grounded encoder and decoder in one stack.

Shapes: B texts, I items (images, or questions; the B / I texts of an item are adjacent), T tokens, M memory tokens,
W memory width, D width, H heads, K = D // H, L tokens that a cache has room for, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from openblip.errors import ConfigError, InputError
from openblip.keras.backend import Tensor, keras, ops
from openblip.keras.layers import Attention, Mlp, Trace, activate, dense, embedding, hiding_bias, layer_norm, look_up
from openblip.model.config import TextConfig

KeysValues = tuple[Tensor, Tensor]


class Memory(NamedTuple):
    """Cross-attention keys and values of I items, computed once and shared by all texts about an item.

    Attributes:
        layers: Per layer the keys and values, each (I, H, M, K).
        bias: Additive padding bias (I, 1, 1, M), or `None` if there is no padding.
    """

    layers: tuple[KeysValues, ...]
    bias: Tensor | None


Cache = tuple[KeysValues, ...]
"""Per layer the self-attention keys and values (B, H, L, K) of the tokens so far, in slots for L tokens."""


class TextTransformer(keras.layers.Layer):
    """Word pieces to states (B, T, D): a post-norm BERT with optional cross-attention and without token types.

    Args:
        config: Configuration of the transformer.
        pooler: Whether to add the pooler of BERT, which only the two-tower model has.
    """

    def __init__(self, config: TextConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = [TextLayer(config) for _ in range(config.depth)]
        self.pooler = dense(config.width, config.width) if pooler else None
        self.built = True

    def call(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        memory: Memory | None = None,
        cache: Cache | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Cache]:
        """Run all layers.

        Args:
            x: Embedded states (B, T, D).
            bias: Additive self-attention bias, broadcastable to (B, H, T, S); S is T, or T more than the cache.
            memory: Cross-attention keys and values; `None` skips cross-attention.
            cache: Keys and values of previous tokens, which the new ones follow.
            trace: Records states and attention.

        Returns:
            States (B, T, D), and per layer the keys and values of all tokens.
        """
        if memory is not None:
            self.check_cross_attention()
        if trace is not None:
            trace.hidden.append(x)
        layers = []
        for index, layer in enumerate(self.layers):
            keys, values = layer.self_attn.project_keys_values(x)
            if cache is not None:
                keys = ops.concatenate([cache[index][0], keys], axis=2)
                values = ops.concatenate([cache[index][1], values], axis=2)
            x = layer(x, keys, values, bias, memory, index=index, trace=trace)
            layers.append((keys, values))
            if trace is not None:
                trace.hidden.append(x)
        return x, tuple(layers)

    def prefill(self, ids: Tensor, positions: Tensor, visible: Tensor, memory: Memory | None) -> tuple[Tensor, Cache]:
        """Decode prompts, and return a cache with room for further tokens.

        Args:
            ids: Token ids (B, P).
            positions: Positions (B, P).
            visible: 1 for tokens that others may attend to (B, L); L is the room of the cache.
            memory: Cross-attention keys and values of the items.

        Returns:
            States (B, P, D), and the cache.
        """
        length, room = ids.shape[1], visible.shape[1]
        x = self.embeddings(ids, positions)
        later = np.triu(np.ones((length, length), dtype=bool), 1)[None, None]
        hidden = ops.logical_or(ops.convert_to_tensor(later), ops.equal(visible[:, None, None, :length], 0))
        states, layers = self(x, hiding_bias(hidden, x.dtype), memory)
        padding = ((0, 0), (0, 0), (0, room - length), (0, 0))
        return states, tuple((ops.pad(keys, padding), ops.pad(values, padding)) for keys, values in layers)

    def step(
        self, ids: Tensor, positions: Tensor, visible: Tensor, slot: Tensor, memory: Memory | None, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """Decode one token of each row.

        Args:
            ids: Token ids (B, 1).
            positions: Positions (B, 1).
            visible: 1 for tokens, the new one included, that the new one attends to (B, L).
            slot: The slot of the cache for the new token, a scalar.
            memory: Cross-attention keys and values of the items.
            cache: The cache of the previous tokens.

        Returns:
            States (B, 1, D), and the cache with the new tokens.
        """
        x = self.embeddings(ids, positions)
        bias = hiding_bias(ops.equal(visible, 0)[:, None, None, :], x.dtype)
        is_slot = ops.equal(ops.arange(visible.shape[1], dtype="int32"), ops.cast(slot, "int32"))[None, None, :, None]
        layers = []
        for index, layer in enumerate(self.layers):
            new_keys, new_values = layer.self_attn.project_keys_values(x)
            keys = ops.where(is_slot, new_keys, cache[index][0])
            values = ops.where(is_slot, new_values, cache[index][1])
            x = layer(x, keys, values, bias, memory, index=index)
            layers.append((keys, values))
        return x, tuple(layers)

    def project(self, states: Tensor, mask: Tensor | None = None) -> Memory:
        """Compute the cross-attention keys and values of all layers.

        Args:
            states: States of images or questions (I, M, W).
            mask: Whether each is a token (I, M); `None` if there is no padding.

        Returns:
            The memory that texts attend to.

        Raises:
            ConfigError: The transformer has no cross-attention.
        """
        self.check_cross_attention()
        layers = tuple(layer.cross_attn.project_keys_values(states) for layer in self.layers if layer.cross_attn)
        bias = None
        if mask is not None:
            bias = hiding_bias(ops.logical_not(ops.cast(mask, "bool"))[:, None, None, :], layers[0][0].dtype)
        return Memory(layers, bias)

    def pool(self, first: Tensor) -> Tensor:
        """Return the pooled first token: a linear layer and tanh.

        Args:
            first: States of first tokens (B, D).

        Returns:
            The pooled states (B, D).
        """
        assert self.pooler is not None
        return ops.tanh(self.pooler(first))

    def check_cross_attention(self) -> None:
        """Raise for a transformer without cross-attention.

        Raises:
            ConfigError: The transformer has no cross-attention.
        """
        if self.config.memory_width is None:
            raise ConfigError(
                "image-grounded text needs cross-attention, but memory_width of this text transformer is None"
            )


class Embeddings(keras.layers.Layer):
    """The sum of word and position embeddings, normalized."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.pad_id = config.pad_id
        self.max_positions = config.max_positions
        self.word = embedding(config.vocab_size, config.width)
        self.position = embedding(config.max_positions, config.width)
        self.norm = layer_norm(config.width, config.layer_norm_eps)
        self.dropout = keras.layers.Dropout(config.dropout) if config.dropout else None
        self.built = True

    def call(self, ids: Tensor | None, positions: Tensor | None = None, words: Tensor | None = None) -> Tensor:
        """Return embedded tokens.

        Args:
            ids: Token ids (B, T).
            positions: Positions (B, T); by default, tokens are counted.
            words: Word embeddings (B, T, D) instead of `ids`.

        Returns:
            Embedded tokens (B, T, D).

        Raises:
            InputError: The text is longer than the model allows.
        """
        if words is None:
            words = self.look_up(ids)
        if positions is None:
            if words.shape[1] is not None and words.shape[1] > self.max_positions:
                raise InputError(f"a text must have at most {self.max_positions} tokens, got {words.shape[1]}")
            positions = ops.arange(ops.shape(words)[1], dtype="int32")[None]
        x = self.norm(words + look_up(self.position, positions))
        return x if self.dropout is None else self.dropout(x)

    def look_up(self, ids: Tensor) -> Tensor:
        """Return word embeddings. As in PyTorch's classes, the embedding of padding is not trained by them.

        Args:
            ids: Token ids (B, T).

        Returns:
            Word embeddings (B, T, D).
        """
        words = look_up(self.word, ids)
        is_padding = ops.equal(ids, self.pad_id)[..., None]
        return ops.where(is_padding, ops.stop_gradient(words), words)


class TextLayer(keras.layers.Layer):
    """A post-norm layer: self-attention, cross-attention if there is a memory, and an MLP."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.self_attn = Attention(width, config.heads, dropout=config.attention_dropout)
        self.self_norm = layer_norm(width, eps)
        self.cross_attn = None
        if config.memory_width is not None:
            self.cross_attn = Attention(width, config.heads, config.memory_width, config.attention_dropout)
            self.cross_norm = layer_norm(width, eps)
        self.mlp = Mlp(width, config.mlp_width, config.activation)
        self.mlp_norm = layer_norm(width, eps)
        self.dropout = keras.layers.Dropout(config.dropout) if config.dropout else None
        self.built = True

    def call(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
        memory: Memory | None = None,
        index: int = 0,
        trace: Trace | None = None,
    ) -> Tensor:
        """Return states (B, T, D) of states (B, T, D).

        Args:
            x: States (B, T, D).
            keys: Self-attention keys (B, H, S, K).
            values: Self-attention values (B, H, S, K).
            bias: Additive self-attention bias, broadcastable to (B, H, T, S).
            memory: Cross-attention keys and values of all layers.
            index: Number of the layer.
            trace: Records attention.

        Returns:
            States (B, T, D).
        """
        x = self.self_norm(x + self._drop(self.self_attn(x, keys, values, bias, trace=trace)))
        if memory is not None and self.cross_attn is not None:
            mixed = self.cross_attn(x, *memory.layers[index], memory.bias, cross=True, trace=trace)
            x = self.cross_norm(x + self._drop(mixed))
        return self.mlp_norm(x + self._drop(self.mlp(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return x if self.dropout is None else self.dropout(x)


class LanguageHead(keras.layers.Layer):
    """States to next-token logits; the output matrix is the word embedding.

    Args:
        config: Configuration of the transformer.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.dense = dense(config.width, config.width)
        self.norm = layer_norm(config.width, config.layer_norm_eps)
        self.bias = self.add_weight((config.vocab_size,), "zeros", name="bias")
        self.built = True

    def call(self, states: Tensor, word: Tensor) -> Tensor:
        """Return next-token logits.

        Args:
            states: States (B, T, D).
            word: Word embeddings (V, D).

        Returns:
            Logits (B, T, V).
        """
        x = self.norm(activate(self.dense(states), self.activation))
        return ops.matmul(x, ops.transpose(ops.cast(word, x.dtype))) + ops.cast(self.bias, x.dtype)
