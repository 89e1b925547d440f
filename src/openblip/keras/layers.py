"""Building blocks of both encoders: attention, MLP, masks, and the record of a forward pass.

Layers have their weights from the start, so that a model can be loaded before it is called.

Shapes: B rows, I items (the rows of an item share a memory and are adjacent), T queries, S keys, D width, H heads,
K = D // H.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openblip.keras.backend import BACKEND, Tensor, keras, lowest, normal, ops
from openblip.model.config import Activation


@dataclass
class Trace:
    """Records of a forward pass: pass an empty trace in, and read it afterwards.

    Attributes:
        attention: Whether to record attention.
        hidden: Input of the first layer and output of each layer, before a final norm.
        self_weights: Self-attention probabilities (B, H, T, S) of each layer.
        cross_weights: Cross-attention probabilities (B, H, T, S) of each layer.
    """

    attention: bool = False
    hidden: list[Tensor] = field(default_factory=list)
    self_weights: list[Tensor] = field(default_factory=list)
    cross_weights: list[Tensor] = field(default_factory=list)


def dense(width_in: int, width: int, *, std: float = 0.02, bias: bool = True) -> keras.layers.Dense:
    """Return a linear layer with its weights.

    Args:
        width_in: Width of the input.
        width: Width of the output.
        std: Standard deviation of the initial weights.
        bias: Whether to add a bias.

    Returns:
        The layer.
    """
    layer = keras.layers.Dense(width, use_bias=bias, kernel_initializer=normal(std))
    layer.build((None, width_in))
    return layer


def layer_norm(width: int, eps: float) -> keras.layers.LayerNormalization:
    """Return a layer norm with its weights.

    Args:
        width: Width of the states.
        eps: Number that is added to the variance.

    Returns:
        The layer.
    """
    layer = keras.layers.LayerNormalization(epsilon=eps)
    layer.build((None, None, width))
    return layer


def embedding(count: int, width: int, *, std: float = 0.02) -> keras.layers.Embedding:
    """Return an embedding table with its weights.

    Args:
        count: Number of rows.
        width: Width of a row.
        std: Standard deviation of the initial weights.

    Returns:
        The layer.
    """
    layer = keras.layers.Embedding(count, width, embeddings_initializer=normal(std))
    layer.build((None, None))
    return layer


def look_up(table: keras.layers.Embedding, ids: Tensor) -> Tensor:
    """Return rows of an embedding table.

    TensorFlow's own gradient is sparse and names a row twice if two tokens share it; Keras' optimizers square such
    gradients before they add them. This gradient is dense.

    Args:
        table: The embedding layer.
        ids: Numbers of rows (B, T).

    Returns:
        The rows (B, T, D).
    """
    if BACKEND == "jax":
        return table(ids)
    import tensorflow as tf

    count, width = table.embeddings.shape

    @tf.custom_gradient
    def take(rows: Tensor) -> Any:
        def gradient(upstream: Tensor) -> Tensor:
            return tf.math.unsorted_segment_sum(tf.reshape(upstream, (-1, width)), tf.reshape(ids, (-1,)), count)

        return tf.gather(rows, ids), gradient

    return take(ops.cast(ops.convert_to_tensor(table.embeddings), table.compute_dtype))


def activate(x: Tensor, name: Activation) -> Tensor:
    """Apply the activation function of an MLP. BLIP was trained with the exact (erf) GELU.

    Args:
        x: States.
        name: Name of the function.

    Returns:
        The activated states.
    """
    if name in ("gelu", "gelu_tanh"):
        return ops.gelu(x, approximate=name == "gelu_tanh")
    if name == "quick_gelu":
        return x * ops.sigmoid(1.702 * x)
    return ops.relu(x) if name == "relu" else ops.silu(x)


def hiding_bias(hidden: Tensor, dtype: Any) -> Tensor:
    """Return the additive attention bias that hides positions.

    Hidden positions get the lowest finite number, not minus infinity, so that the attention of a row without visible
    tokens is uniform, not NaN.

    Args:
        hidden: Whether to hide each position.
        dtype: Type of the bias.

    Returns:
        The bias, in the shape of `hidden`.
    """
    return ops.cast(hidden, dtype) * lowest(dtype)


def padding_bias(mask: Tensor, dtype: Any) -> Tensor:
    """Return the additive attention bias of a padding mask.

    Args:
        mask: 1 for tokens, 0 for padding (B, S).
        dtype: Type of the bias.

    Returns:
        Bias (B, 1, 1, S).
    """
    return hiding_bias(ops.equal(mask, 0)[:, None, None, :], dtype)


def causal_bias(length: int, dtype: Any, mask: Tensor | None = None) -> Tensor:
    """Return the additive attention bias with which a token attends to itself and to earlier tokens.

    Args:
        length: Number of tokens T.
        dtype: Type of the bias.
        mask: 1 for tokens, 0 for padding (B, T); padding is hidden, too.

    Returns:
        Bias (1, 1, T, T), or (B, 1, T, T) with a mask.
    """
    hidden = ops.convert_to_tensor(np.triu(np.ones((length, length), dtype=bool), 1)[None, None])
    if mask is not None:
        hidden = ops.logical_or(hidden, ops.equal(mask, 0)[:, None, None, :])
    return hiding_bias(hidden, dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: Any, record: list[Tensor] | None
) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        query: Queries (B, H, T, K).
        key: Keys (B, H, S, K).
        value: Values (B, H, S, K).
        bias: Additive attention bias, broadcastable to (B, H, T, S).
        dropout: Dropout of the probabilities; `None` for none.
        record: List to append the probabilities (B, H, T, S) to.

    Returns:
        Mixed values (B, H, T, K).
    """
    scores = ops.matmul(query * query.shape[-1] ** -0.5, ops.transpose(key, (0, 1, 3, 2)))
    if key.shape[2] == 1:
        weights = ops.ones_like(scores)  # Keras warns about the softmax of one number
    else:
        weights = ops.softmax(scores if bias is None else scores + bias, axis=-1)
    if record is not None:
        record.append(weights)
    return ops.matmul(weights if dropout is None else dropout(weights), value)


class Attention(keras.layers.Layer):
    """Multi-head attention with separate query, key and value projections, as in BERT.

    Keys and values are an argument, computed by `project_keys_values`, because they outlive a call: a cache appends to
    them, and the keys and values of an image serve all beams, questions and texts about it.

    Args:
        width: Width of the queries and of the output.
        heads: Number of heads.
        memory_width: Width of the states that keys and values are computed from; the default is `width`.
        dropout: Dropout of the probabilities.
    """

    def __init__(self, width: int, heads: int, memory_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.query = dense(width, width)
        self.key = dense(memory_width or width, width)
        self.value = dense(memory_width or width, width)
        self.out = dense(width, width)
        self.dropout = keras.layers.Dropout(dropout) if dropout else None
        self.built = True

    def project_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of states.

        Args:
            memory: States (I, S, W).

        Returns:
            Keys and values, each (I, H, S, K).
        """
        return self._split_heads(self.key(memory)), self._split_heads(self.value(memory))

    def call(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
        cross: bool = False,
        trace: Trace | None = None,
    ) -> Tensor:
        """Mix the values for each row.

        In cross-attention, the rows of an item become further queries of the item (B = I * rows): one pass over its
        keys, and no copy.

        Args:
            x: Rows (B, T, D).
            keys: Keys (I, H, S, K).
            values: Values (I, H, S, K).
            bias: Additive attention bias, broadcastable to (I, H, B / I * T, S).
            cross: Whether the keys and values belong to items, which several rows can share.
            trace: Records the probabilities.

        Returns:
            Mixed rows (B, T, D).
        """
        record = None
        if trace is not None and trace.attention:
            record = trace.cross_weights if cross else trace.self_weights
        states = self.query(x)
        if cross:
            states = ops.reshape(states, (ops.shape(keys)[0], -1, self.width))
        mixed = attend(self._split_heads(states), keys, values, bias, self.dropout, record)
        mixed = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, ops.shape(x)[1], self.width))
        return self.out(mixed)

    def _split_heads(self, x: Tensor) -> Tensor:
        shape = (-1, ops.shape(x)[1], self.heads, self.width // self.heads)
        return ops.transpose(ops.reshape(x, shape), (0, 2, 1, 3))  # (B, T, D) -> (B, H, T, K)


class Mlp(keras.layers.Layer):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = dense(width, hidden)
        self.fc2 = dense(hidden, width)
        self.activation = activation
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Return states (..., D) of states (..., D)."""
        return self.fc2(activate(self.fc1(x), self.activation))
