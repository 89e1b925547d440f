"""`BlipTextModel` and `BlipTextLMHeadModel`: the text transformer, without and with its language head.

Shapes: B texts, I items (images or questions), T tokens, M memory tokens, D width, W memory width, V vocabulary,
H heads, K width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_v4_order, select_states, strip_prefix
from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.generation import generate
from openblip.compat.transformers_api.naming import HubPart, add_state_dict_hooks
from openblip.compat.transformers_api.options import GenerationConfig
from openblip.compat.transformers_api.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    GenerateOutput,
    OutputTuple,
)
from openblip.compat.transformers_api.padding import compute_positions, first_states, select_columns
from openblip.errors import InputError
from openblip.model.layers import Trace
from openblip.model.text import Cache, KeysValues, LanguageHead, Memory, TextTransformer


class TextCache(Cache):
    """`past_key_values` of a decoder: growing keys and values of self-attention, and fixed ones of cross-attention."""

    def __init__(self) -> None:
        self.layers: list[KeysValues] = []
        self.length = 0
        self.memory: Memory | None = None
        self.lengths: Tensor | None = None  # (B,), set if rows differ in length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Add the keys and values (B, H, T, K) of new tokens to a layer.

        Args:
            layer: Number of the layer.
            keys: Keys of the new tokens.
            values: Values of the new tokens.

        Returns:
            Keys and values of all tokens.
        """
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            previous_keys, previous_values = self.layers[layer]
            self.layers[layer] = (torch.cat([previous_keys, keys], 2), torch.cat([previous_values, values], 2))
        return self.layers[layer]

    def select(self, rows: Tensor) -> None:
        """Replace row r by row `rows[r]`.

        Args:
            rows: Row numbers.
        """
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        self.memory = self.memory.select(rows) if self.memory and self.memory.items > 1 else self.memory
        self.lengths = None if self.lengths is None else self.lengths[rows]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row r by row `beam_idx[r]`; the name of `select` in `transformers`.

        Args:
            beam_idx: Row numbers.
        """
        self.select(beam_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens.

        Args:
            layer_idx: Ignored; all layers have the same number.

        Returns:
            The number of cached tokens.
        """
        return self.length


class BlipTextModel(HubPart, PreTrainedModel):
    """The text transformer as encoder or, with `is_decoder=True`, as decoder; `self.model` is OpenBLIP's.

    Args:
        config: Sizes of the transformer.
        add_pooling_layer: Add the pooler, which only `BlipModel` uses.
    """

    config_class = BlipTextConfig
    task = "text"
    model: TextTransformer

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__("text")
        self.config = config
        self.model = TextTransformer(config.to_model_config(), pooler=add_pooling_layer)

    @accepts_v4_order(
        *("input_ids", "attention_mask", "position_ids", "head_mask", "inputs_embeds", "encoder_embeds"),
        *("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "use_cache", "output_attentions"),
        *("output_hidden_states", "return_dict", "is_decoder"),
    )
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: TextCache | None = None,
        use_cache: bool | None = None,
        is_decoder: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | OutputTuple:
        """Encode texts. Token ids are used as they are.

        A single item of `encoder_hidden_states` serves all texts, and a single text is combined with all items.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T); with a cache, cached tokens included. Padding that longer texts in
                the batch cause never changes a row (`padding`).
            position_ids: Positions (B, T); by default, tokens are counted.
            inputs_embeds: Word embeddings (B, T, D) instead of `input_ids`.
            encoder_embeds: Embeddings (B, T, D) to use without the embedding layer's norm and positions.
            encoder_hidden_states: States (I, M, W) for cross-attention.
            encoder_attention_mask: Attention mask (I, M) of these states. As in `transformers`, padding that all items
                share is not masked.
            past_key_values: Cache of a decoder.
            use_cache: Return a cache from a decoder.
            is_decoder: Use causal attention.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.

        Returns:
            States (B, T, D).

        Raises:
            InputError: Inputs are missing, exclude each other or differ in their number of rows.
        """
        if past_key_values is not None and not is_decoder:
            raise InputError("past_key_values need is_decoder=True: an encoder also attends to later tokens")
        attentions = self._option(output_attentions, "output_attentions")
        hidden = self._option(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden is not False else None
        columns = select_columns(attention_mask)
        cache = past_key_values
        if cache is None and is_decoder and self._option(use_cache, "use_cache"):
            cache = TextCache()
        if encoder_embeds is not None:
            x = encoder_embeds
        else:
            x = self._embed(input_ids, inputs_embeds, position_ids, columns, cache)
        memory = self._project_memory(encoder_hidden_states, select_columns(encoder_attention_mask), cache)
        if memory is not None and memory.items not in (1, len(x)):
            if len(x) != 1:
                raise InputError(f"{len(x)} texts must match {memory.items} images or questions, or either must be 1")
            x = x.expand(memory.items, -1, -1)
            attention_mask = None if attention_mask is None else attention_mask.expand(memory.items, -1)
        if is_decoder:
            states = self.model.decode_embedded(x, attention_mask, memory, cache=cache, trace=trace)
        else:
            states = self.model.encode_embedded(x, attention_mask, memory, trace=trace)
        pooled = None
        if self.model.pooler is not None:
            cls_states = first_states(states, columns if past_key_values is None else None)
            pooled = self.model.pool(cls_states[:, None])
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states,
            pooler_output=pooled,
            past_key_values=cache,
            hidden_states=select_states(trace.hidden, hidden) if trace else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
            cross_attentions=tuple(trace.cross_weights) if trace and attentions else None,
        )
        return self._finish(output, return_dict)

    def _embed(
        self,
        ids: Tensor | None,
        words: Tensor | None,
        positions: Tensor | None,
        columns: Tensor | None,
        cache: TextCache | None,
    ) -> Tensor:
        """Return the input of the first layer (B, T, D)."""
        if (ids is None) == (words is None):
            raise InputError("either input_ids or inputs_embeds must be given, and not both")
        if words is None:
            assert ids is not None
            words = self.model.embeddings.word(ids)
        num_new = words.shape[1]
        start = cache.length if cache is not None else 0
        if positions is None and start == 0:
            positions = compute_positions(columns)
        elif positions is None and cache is not None and cache.lengths is not None:
            positions = cache.lengths[:, None] + torch.arange(num_new, device=words.device)
        if cache is not None:
            if start == 0 and columns is not None:
                cache.lengths = columns.sum(1)
            elif cache.lengths is not None:
                cache.lengths = cache.lengths + num_new
        return self.model.embeddings.embed(words, start, positions)

    def _project_memory(self, states: Tensor | None, mask: Tensor | None, cache: TextCache | None) -> Memory | None:
        """Return the keys and values of cross-attention, from the cache if it contains them."""
        if states is None:
            return None
        if cache is not None and cache.memory is not None:
            return cache.memory
        if mask is not None and len(mask) != len(states):
            if len(states) != 1:
                raise InputError(
                    f"encoder_attention_mask must have a row for each of {len(states)} images or questions, got "
                    f"{len(mask)} rows"
                )
            states = states.expand(len(mask), -1, -1)
        memory = self.model.project(states, mask)
        if cache is not None:
            cache.memory = memory
        return memory

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding.

        Returns:
            The word embedding.
        """
        return self.model.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding.

        Args:
            value: The new embedding.
        """
        self.model.embeddings.word = value

    @classmethod
    def _select_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the text transformer's tensors of a `BlipModel`, or all tensors of a text transformer."""
        return strip_prefix(tensors, "text_model.") or tensors


class _PredictionHead(HubPart):
    """The language head under its hub names."""

    model: LanguageHead

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__("caption", "lm_head.", "text_decoder.cls.")
        self.model = LanguageHead(config.to_model_config())


class BlipTextLMHeadModel(PreTrainedModel):
    """A text decoder with a language head whose output matrix is the word embedding.

    Args:
        config: Sizes of the transformer.
    """

    config_class = BlipTextConfig
    task = "text"

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BlipTextModel(config, add_pooling_layer=False)
        self.cls = _PredictionHead(config)
        self.label_smoothing = config.label_smoothing
        self.generation_config = GenerationConfig()
        add_state_dict_hooks(self, _add_tied, _drop_tied)

    @property
    def text_transformer(self) -> TextTransformer:
        """OpenBLIP's text transformer."""
        return self.bert.model

    @property
    def language_head(self) -> LanguageHead:
        """OpenBLIP's language head."""
        return self.cls.model

    @accepts_v4_order(
        *("input_ids", "attention_mask", "position_ids", "head_mask", "inputs_embeds", "encoder_hidden_states"),
        *("encoder_attention_mask", "labels", "past_key_values", "use_cache", "output_attentions"),
        *("output_hidden_states", "return_dict", "return_logits", "is_decoder", "reduction"),
    )
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: TextCache | None = None,
        use_cache: bool | None = None,
        return_logits: bool = False,
        is_decoder: bool = True,
        reduction: str = "mean",
        logits_to_keep: int | Tensor = 0,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | Tensor | OutputTuple:
        """Compute next-token logits and, with labels, their loss.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T).
            position_ids: Positions (B, T).
            inputs_embeds: Word embeddings (B, T, D) instead of `input_ids`.
            encoder_hidden_states: States (I, M, W) for cross-attention.
            encoder_attention_mask: Attention mask (I, M) of these states.
            labels: Token ids (B, T) to predict from the tokens before them; -100 is ignored.
            past_key_values: Cache of earlier tokens.
            use_cache: Return a cache; never with labels.
            return_logits: Return only the logits, without the last position.
            is_decoder: Use causal attention.
            reduction: "mean", or "none" for a sum per text.
            logits_to_keep: Number of last positions, or the positions, to compute logits of; 0 for all.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.

        Returns:
            Logits (B, T, V), and the loss with labels.
        """
        outputs = self.bert(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
            is_decoder=is_decoder,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        states = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            states = states[:, logits_to_keep]
        elif logits_to_keep:
            states = states[:, -logits_to_keep:]
        logits = self.language_head(states, self.text_transformer.embeddings.word)
        if return_logits:
            return logits[:, :-1].contiguous()
        loss = None if labels is None else self.loss(logits, labels, reduction)
        output = CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        return self._finish(output, return_dict)

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the cross-entropy of labels given the tokens before them, with label smoothing.

        Args:
            logits: Logits (B, T, V).
            labels: Token ids (B, T); -100 is ignored.
            reduction: "mean" for a scalar, "none" for a sum per text (B,).

        Returns:
            The cross-entropy of labels given the tokens before them, with label smoothing.
        """
        logits, targets = logits[:, :-1], labels[:, 1:].to(logits.device)
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction=reduction, label_smoothing=self.label_smoothing
        )
        return loss.view(len(logits), -1).sum(1) if reduction == "none" else loss

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Continue texts.

        Args:
            input_ids: Token ids (B, T) of the prompts.
            attention_mask: 1 for real tokens (B, T).
            encoder_hidden_states: States (I, M, W) for cross-attention.
            encoder_attention_mask: Attention mask (I, M) of these states.
            generation_config: Options that override the model's own.
            **options: Options that override `generation_config`.

        Returns:
            Token ids including the prompts, or an output object with `return_dict_in_generate=True`.

        Raises:
            InputError: An option or an input is invalid or not supported.
        """
        return generate(
            self, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, generation_config, options
        )

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding.

        Returns:
            The word embedding.
        """
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding, which is also the output matrix.

        Args:
            value: The new embedding.
        """
        self.bert.set_input_embeddings(value)

    def _tied_names(self) -> set[str]:
        return set(_TIED)


# Second names of tensors in state dicts of transformers.
_TIED = {
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
}


def _add_tied(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    for alias, name in _TIED.items():
        if prefix + name in state:
            state[prefix + alias] = state[prefix + name]


def _drop_tied(
    _module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Remove tied tensors, and report those that differ from the tensor they are tied to."""
    for alias, name in _TIED.items():
        tied, original = state.pop(prefix + alias, None), state.get(prefix + name)
        if tied is None or original is None or tied.data_ptr() == original.data_ptr():
            continue
        if tied.shape != original.shape or not torch.equal(tied, original.to(tied)):
            errors.append(f"{prefix}{alias} and {prefix}{name} must be equal: they are one tensor")
