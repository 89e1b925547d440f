"""The module tree of the text transformer, with the names of `transformers`.

Shapes: B texts, I items (images or questions; the B / I texts of an item are adjacent), T tokens, S tokens with the
cached ones, M memory tokens, W memory width, D width, V vocabulary, H heads, K = D // H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.layers import CheckpointedLayer, make_activation, mix, weights_are_hidden
from openblip.compat.transformers_api.outputs import BaseModelOutputWithPastAndCrossAttentions
from openblip.errors import ConfigError, InputError
from openblip.model.layers import Trace, project_columns, select_items
from openblip.model.packing import apply_linear
from openblip.model.text import KeysValues


class TextCache:
    """`past_key_values` of a decoder: growing keys and values of self-attention, and fixed ones of cross-attention.

    Args:
        capacity: Number of tokens to allocate; `None` grows with each call.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.length = 0
        self.layers: list[KeysValues] = []
        self.memory: list[KeysValues] = []  # cross-attention of each layer, for I items
        self.lengths: Tensor | None = None  # (B,), set if rows differ in length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Add the keys and values (B, H, T, K) of new tokens to a layer.

        Args:
            layer: Number of the layer.
            keys: Keys of the new tokens.
            values: Values of the new tokens.

        Returns:
            Keys and values (B, H, S, K) of all tokens.

        Raises:
            InputError: The cache is full.
        """
        if self.capacity is None:
            if layer == len(self.layers):
                self.layers.append((keys, values))
            else:
                previous_keys, previous_values = self.layers[layer]
                self.layers[layer] = (torch.cat([previous_keys, keys], 2), torch.cat([previous_values, values], 2))
            return self.layers[layer]
        start, end = self.length, self.length + keys.shape[2]
        if end > self.capacity:
            raise InputError(f"a row of the cache holds at most {self.capacity} tokens, got {end}")
        if layer == len(self.layers):
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.layers.append((keys.new_empty(shape), values.new_empty(shape)))
        all_keys, all_values = self.layers[layer]
        all_keys[:, :, start:end] = keys
        all_values[:, :, start:end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Replace row r by row `rows[r]`. Rows may repeat, and their number may change.

        Args:
            rows: Row numbers.
        """
        for index, (keys, values) in enumerate(self.layers):
            if self.capacity is not None and len(rows) == len(keys):  # in place, only the filled part
                keys[:, :, : self.length] = keys[rows, :, : self.length]
                values[:, :, : self.length] = values[rows, :, : self.length]
            else:
                self.layers[index] = (keys[rows], values[rows])
        self.lengths = None if self.lengths is None else self.lengths[rows]

    def select_memory(self, items: Tensor) -> None:
        """Replace item i of the cross-attention by item `items[i]`.

        Args:
            items: Item numbers.
        """
        self.memory = [(select_items(keys, items), select_items(values, items)) for keys, values in self.memory]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row r by row `beam_idx[r]`, in cross-attention, too, unless all rows share one item.

        Args:
            beam_idx: Row numbers.
        """
        self.select(beam_idx)
        if self.memory and len(self.memory[0][0]) > 1:
            self.select_memory(beam_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens.

        Args:
            layer_idx: Ignored; all layers have the same number.

        Returns:
            The number of cached tokens.
        """
        return self.length


class BlipTextEmbeddings(nn.Module):
    """The sum of word and position embeddings, normalized."""

    position_ids: Tensor

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.empty(0), persistent=False)
        self.reset_position_ids(config.max_position_embeddings)
        self.config = config
        untyped: Any = self  # torch's stubs declare other signatures
        untyped.register_load_state_dict_pre_hook(_drop_position_ids)
        untyped.register_load_state_dict_post_hook(_compute_position_ids)

    def reset_position_ids(self, count: int | None = None, device: torch.device | None = None) -> None:
        """Compute the buffer of positions, which files do not contain.

        Args:
            count: Number of positions.
            device: Device of the buffer.
        """
        self.position_ids = torch.arange(count or self.position_ids.shape[-1], device=device)[None]

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> Tensor:
        """Return states (B, T, D) of token ids (B, T), or of word vectors (B, T, D).

        Raises:
            InputError: A position is beyond the maximum.
        """
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        start, count = past_key_values_length, self.position_ids.shape[-1]
        if position_ids is None:
            end = start + words.shape[1]
            position_ids = self.position_ids[:, start:end]
        else:
            end = 0 if torch.compiler.is_compiling() else int(position_ids.max()) + 1
        if end > count:
            raise InputError(f"a text must have at most {count} tokens, got {end}")
        return self.dropout(self.LayerNorm(words + self.position_embeddings(position_ids)))


def _drop_position_ids(_module: nn.Module, state: dict[str, Any], prefix: str, *_args: object) -> None:
    """Remove the positions from a loaded state: files of transformers 4 contain them, and they are computed."""
    state.pop(f"{prefix}position_ids", None)


def _compute_position_ids(module: nn.Module, _incompatible_keys: object) -> None:
    """Compute the positions of a module that was built on the meta device and has its weights now."""
    assert isinstance(module, BlipTextEmbeddings)
    device = module.word_embeddings.weight.device
    if module.position_ids.is_meta and device.type != "meta":
        module.reset_position_ids(device=device)


class BlipTextSelfAttention(nn.Module):
    """Attention to the text itself or, with `is_cross_attention`, to images or questions."""

    def __init__(self, config: BlipTextConfig, is_cross_attention: bool, layer_idx: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        if self.all_head_size != config.hidden_size:
            raise ConfigError(
                "the text width must be a multiple of the number of heads, "
                f"got {config.hidden_size} and {config.num_attention_heads}"
            )
        self.layer_idx = layer_idx
        memory_width = config.encoder_hidden_size if is_cross_attention else config.hidden_size
        self.query = nn.Linear(config.hidden_size, self.all_head_size)
        self.key = nn.Linear(memory_width, self.all_head_size)
        self.value = nn.Linear(memory_width, self.all_head_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def save_attn_gradients(self, attn_gradients: Tensor) -> None:
        """Store gradients of the attention weights, for Grad-CAM."""
        self.attn_gradients = attn_gradients

    def get_attn_gradients(self) -> Tensor:
        """Return the stored gradients of the attention weights."""
        return self.attn_gradients

    def save_attention_map(self, attention_map: Tensor) -> None:
        """Store attention weights, for Grad-CAM."""
        self.attention_map = attention_map

    def get_attention_map(self) -> Tensor:
        """Return the stored attention weights."""
        return self.attention_map

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: TextCache | None = None,
        need_weights: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix values.

        Args:
            hidden_states: States (B, T, D).
            attention_mask: Additive bias, broadcastable to (B, H, T, S).
            encoder_hidden_states: States (I, M, W) of the items to attend to.
            encoder_attention_mask: Additive bias (I, 1, 1, M) of the items.
            past_key_values: Cache of the decoder.
            need_weights: Whether to return the attention weights, which excludes the fused kernel.
            **kwargs: Ignored.

        Returns:
            Mixed values (B, T, D), and the attention weights (B, H, T, S) before dropout, or `None`.
        """
        bias = attention_mask
        if encoder_hidden_states is None:
            key, value = self._project(hidden_states)
            if past_key_values is not None:
                key, value = past_key_values.append(self._layer, key, value)
        else:
            bias = attention_mask if encoder_attention_mask is None else encoder_attention_mask
            key, value = self._memory(encoder_hidden_states, past_key_values)
        query = apply_linear(self.query, hidden_states)
        rows, length = hidden_states.shape[:2]
        if len(key) != rows:  # the texts of an item share its keys
            if need_weights:
                times = rows // len(key)
                key, value = key.repeat_interleave(times, 0), value.repeat_interleave(times, 0)
                bias = None if bias is None or len(bias) == 1 else bias.repeat_interleave(times, 0)
            else:
                query = query.view(len(key), -1, self.all_head_size)  # (I, B / I * T, D)
        mixed, weights, _ = mix(self._split_heads(query), key, value, bias, self.dropout, need_weights)
        return mixed.transpose(1, 2).reshape(rows, length, self.all_head_size), weights

    @property
    def _layer(self) -> int:
        return self.layer_idx or 0

    def _memory(self, states: Tensor, cache: TextCache | None) -> KeysValues:
        """Return the keys and values of items, from the cache if it contains them."""
        if cache is None:
            return self._project(states)
        if self._layer == len(cache.memory):
            fast = cache.capacity is not None and states.device.type == "cpu" and not torch.is_grad_enabled()
            if fast and states.dtype == torch.float32 and not self.training:
                heads = self.num_attention_heads
                keys = project_columns(self.key, states, heads), project_columns(self.value, states, heads)
            else:
                keys = self._project(states)
            cache.memory.append(keys)
        return cache.memory[self._layer]

    def _project(self, states: Tensor) -> KeysValues:
        return self._split_heads(apply_linear(self.key, states)), self._split_heads(apply_linear(self.value, states))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_attention_heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, K)


class _ResidualOutput(nn.Module):
    """A linear layer whose output is added to the input of the block and normalized."""

    def __init__(self, config: BlipTextConfig, width_in: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Return states (B, T, D) of the block's result (B, T, F) and its input (B, T, D)."""
        return self.LayerNorm(self.dropout(apply_linear(self.dense, hidden_states)) + input_tensor)


class BlipTextSelfOutput(_ResidualOutput):
    """The output projection of attention."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, config.hidden_size)


class BlipTextAttention(nn.Module):
    """Attention with its output projection."""

    def __init__(self, config: BlipTextConfig, is_cross_attention: bool = False, layer_idx: int | None = None) -> None:
        super().__init__()
        self.self = BlipTextSelfAttention(config, is_cross_attention, layer_idx=layer_idx)
        self.output = BlipTextSelfOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: TextCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return states (B, T, D) and attention weights; see `BlipTextSelfAttention.forward`."""
        mixed, weights = self.self(
            hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=past_key_values,
            **kwargs,
        )
        return self.output(mixed, hidden_states), weights


class BlipTextIntermediate(nn.Module):
    """The first layer of the MLP, with its activation."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = make_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return activations (B, T, F) of states (B, T, D)."""
        return self.intermediate_act_fn(apply_linear(self.dense, hidden_states))


class BlipTextOutput(_ResidualOutput):
    """The second layer of the MLP."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, config.intermediate_size)


class BlipTextLayer(CheckpointedLayer):
    """A post-norm layer: self-attention, cross-attention in a decoder or grounded encoder, MLP."""

    def __init__(self, config: BlipTextConfig, layer_num: int) -> None:
        super().__init__()
        self.config = config
        self.chunk_size_feed_forward = int(getattr(config, "chunk_size_feed_forward", 0))
        self.seq_len_dim = 1
        self.attention = BlipTextAttention(config, layer_idx=layer_num)
        self.layer_num = layer_num
        if config.is_decoder:
            self.crossattention = BlipTextAttention(config, is_cross_attention=True, layer_idx=layer_num)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: TextCache | None = None,
        trace: Trace | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the layer.

        Args:
            hidden_states: States (B, T, D).
            encoder_hidden_states: States (I, M, W) for cross-attention.
            attention_mask: Additive bias of self-attention.
            encoder_attention_mask: Additive bias (I, 1, 1, M) of cross-attention.
            past_key_values: Cache of the decoder.
            trace: Records attention weights.
            **kwargs: Ignored.

        Returns:
            States (B, T, D).
        """
        records = trace if trace is not None and trace.attention else None
        states, weights = self.attention(
            hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **self._omit_weights(self.attention, records),
        )
        if records is not None:
            records.self_weights.append(weights)
        if encoder_hidden_states is not None:
            if not hasattr(self, "crossattention"):
                raise ConfigError("image-grounded text needs cross-attention: set is_decoder=True in the text config")
            states, weights = self.crossattention(
                states,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=past_key_values,
                **self._omit_weights(self.crossattention, records),
            )
            if records is not None:
                records.cross_weights.append(weights)
        if self.chunk_size_feed_forward > 0:
            chunks = states.split(self.chunk_size_feed_forward, dim=self.seq_len_dim)
            return torch.cat([self.feed_forward_chunk(chunk) for chunk in chunks], dim=self.seq_len_dim)
        return self.feed_forward_chunk(states)

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """Return the output (B, T, D) of the MLP."""
        return self.output(self.intermediate(attention_output), attention_output)

    @staticmethod
    def _omit_weights(attention: nn.Module, records: Trace | None) -> dict[str, bool]:
        """Return the argument that omits the attention weights, if no caller or hook can see them."""
        if records is not None or type(attention) is not BlipTextAttention:
            return {}
        inner = attention.self
        is_own = type(inner) is BlipTextSelfAttention
        return {"need_weights": False} if is_own and weights_are_hidden(attention, inner) else {}


class BlipTextEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList([BlipTextLayer(config, index) for index in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: TextCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run all layers.

        Args:
            hidden_states: Embedded states (B, T, D).
            attention_mask: Additive bias of self-attention.
            encoder_hidden_states: States (I, M, W) for cross-attention.
            encoder_attention_mask: Additive bias (I, 1, 1, M) of cross-attention.
            past_key_values: Cache of the decoder, which is advanced.
            use_cache: Make a cache if there is none.
            **kwargs: Passed to the layers; `trace` records states and attention weights.

        Returns:
            States (B, T, D), and the cache.
        """
        if use_cache and past_key_values is None:
            past_key_values = TextCache()
        trace: Trace | None = kwargs.get("trace")
        if trace is not None:
            trace.hidden.append(hidden_states)
        length = hidden_states.shape[1]
        for layer in self.layer:
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                attention_mask=attention_mask,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            if trace is not None:
                trace.hidden.append(hidden_states)
        if past_key_values is not None:
            past_key_values.length += length
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )


class BlipTextPooler(nn.Module):
    """A projection of the first token's state."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return pooled states (B, D) of states (B, T, D)."""
        return self.activation(self.dense(hidden_states[:, 0]))


class BlipTextPredictionHeadTransform(nn.Module):
    """The layer before the output matrix."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = make_activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return states (B, T, D) of states (B, T, D)."""
        return self.LayerNorm(self.transform_act_fn(apply_linear(self.dense, hidden_states)))


class BlipTextLMPredictionHead(nn.Module):
    """States to logits. The model ties `decoder` to the word embedding and to `bias`."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.transform = BlipTextPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, device="meta")
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return logits (B, T, V) of states (B, T, D)."""
        return apply_linear(self.decoder, self.transform(hidden_states))


class BlipTextOnlyMLMHead(nn.Module):
    """The language head."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.predictions = BlipTextLMPredictionHead(config)

    def forward(self, sequence_output: Tensor) -> Tensor:
        """Return logits (B, T, V) of states (B, T, D)."""
        return self.predictions(sequence_output)
