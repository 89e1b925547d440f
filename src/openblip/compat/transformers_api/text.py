"""``BlipTextModel`` and ``BlipTextLMHeadModel``: the text transformer, alone and with its language head.

Shapes: B texts, I items (images or questions), T tokens, M memory tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_order_of_4, chosen_states
from openblip.compat.transformers_api.config import BlipTextConfig, PreTrainedConfig
from openblip.compat.transformers_api.generation import GenerationConfig, generate
from openblip.compat.transformers_api.naming import HubPart, hook
from openblip.compat.transformers_api.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from openblip.compat.transformers_api.padding import first_states, kept_columns, positions
from openblip.errors import InputError
from openblip.model.layers import Trace
from openblip.model.text import Cache, KeysValues, LanguageHead, Memory, TextTransformer


class TextCache(Cache):
    """``past_key_values``: what a decoder keeps between calls. It grows, and knows what cross-attention read."""

    def __init__(self) -> None:
        self.layers: list[KeysValues] = []
        self.length = 0
        self.memory: Memory | None = None
        self.lengths: Tensor | None = None  # (B,), where rows differ because batch mates padded them

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Add the keys and values (B, H, t, K) of new tokens; those of all tokens so far."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            before = self.layers[layer]
            self.layers[layer] = (torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2))
        return self.layers[layer]

    def select(self, rows: Tensor) -> None:
        """Let row r continue what was row ``rows[r]``."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        self.memory = self.memory.select(rows) if self.memory and self.memory.items > 1 else self.memory
        self.lengths = None if self.lengths is None else self.lengths[rows]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As :meth:`select`, under that library's name."""
        self.select(beam_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far."""
        return self.length


class BlipTextModel(HubPart, PreTrainedModel):
    """Ids to states (B, T, D), as an encoder or, with ``is_decoder=True``, causally. ``self.model`` is ours."""

    config_class = BlipTextConfig
    task = "text"
    model: TextTransformer

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__("text")
        self.config = config
        self.model = TextTransformer(config.ours(), pooler=add_pooling_layer)

    @accepts_order_of_4(
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
    ) -> Any:
        """States of texts, which read ``encoder_hidden_states`` (I, M, W) where given; ids are taken as they are.

        ``attention_mask`` (B, T) marks real tokens, with a cache those in it too; padding of batch mates never changes
        a row (:mod:`.padding`). ``encoder_attention_mask`` (I, M) says only what is such padding in the states that
        are read: that library drops it on the way. One item serves all texts, or one text is read with every item.
        """
        if past_key_values is not None and not is_decoder:
            raise InputError("past_key_values need is_decoder=True: an encoder sees later tokens too")
        attentions = self._asked(output_attentions, "output_attentions")
        hidden = self._asked(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden is not False else None
        kept = kept_columns(attention_mask)
        cache = past_key_values
        if cache is None and is_decoder and self._asked(use_cache, "use_cache"):
            cache = TextCache()
        x = self._embedded(input_ids, inputs_embeds, encoder_embeds, position_ids, kept, cache)
        memory = self._memory(encoder_hidden_states, kept_columns(encoder_attention_mask), cache)
        x, attention_mask = _paired(x, attention_mask, memory)
        if is_decoder:
            states = self.model.decode_embedded(x, attention_mask, memory, cache=cache, trace=trace)
        else:
            states = self.model.encode_embedded(x, attention_mask, memory, trace=trace)
        pooled = None
        if self.model.pooler is not None:
            first = first_states(states, kept if past_key_values is None else None)
            pooled = self.model.pool(first[:, None])
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states,
            pooler_output=pooled,
            past_key_values=cache,
            hidden_states=chosen_states(trace.hidden, hidden) if trace else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
            cross_attentions=tuple(trace.cross_weights) if trace and attentions else None,
        )
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def _embedded(
        self,
        ids: Tensor | None,
        words: Tensor | None,
        embedded: Tensor | None,
        places: Tensor | None,
        kept: Tensor | None,
        cache: TextCache | None,
    ) -> Tensor:
        """What the first layer reads (B, T, D), of ids, word vectors, or states that skip the embedding."""
        if embedded is not None:
            return embedded
        if (ids is None) == (words is None):
            raise InputError("give either input_ids or inputs_embeds")
        if words is None:
            assert ids is not None
            words = self.model.embeddings.word(ids)
        new = words.shape[1]
        start = cache.length if cache is not None else 0
        if places is None and start == 0:
            places = positions(kept)
        elif places is None and cache is not None and cache.lengths is not None:
            places = cache.lengths[:, None] + torch.arange(new, device=words.device)
        if cache is not None:
            if start == 0 and kept is not None:
                cache.lengths = kept.sum(1)
            elif cache.lengths is not None:
                cache.lengths = cache.lengths + new
        return self.model.embeddings.embed(words, start, places)

    def _memory(self, states: Tensor | None, mask: Tensor | None, cache: TextCache | None) -> Memory | None:
        """Keys and values of what is read; a cache that has them already is believed."""
        if states is None:
            return None
        if cache is not None and cache.memory is not None:
            return cache.memory
        if mask is not None and len(mask) != len(states):
            if len(states) != 1:
                raise InputError(f"a mask of {len(mask)} rows does not go with {len(states)} images or questions")
            states = states.expand(len(mask), -1, -1)
        memory = self.model.project(states, mask)
        if cache is not None:
            cache.memory = memory
        return memory

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.model.embeddings.word = value

    @classmethod
    def _own_tensors(cls, tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
        """The folder of a ``BlipModel`` serves too: its text transformer is taken."""
        inside = {name: tensor for name, tensor in tensors.items() if name.startswith("text_model.")}
        return {name.removeprefix("text_model."): tensor for name, tensor in inside.items()} or tensors


class _Predictions(HubPart):
    """The language head under its hub names."""

    model: LanguageHead

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__("caption", "lm_head.", "text_decoder.cls.")
        self.model = LanguageHead(config.ours())


class BlipTextLMHeadModel(PreTrainedModel):
    """A text decoder: states to next-token logits (B, T, V), through the decoder's own word embedding."""

    config_class = BlipTextConfig
    task = "text"

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BlipTextModel(config, add_pooling_layer=False)
        self.cls = _Predictions(config)
        self.label_smoothing = config.label_smoothing
        self.generation_config = GenerationConfig()
        hook(self, _add_tied, _drop_tied)

    @accepts_order_of_4(
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
    ) -> Any:
        """Logits and, with ``labels`` (B, T), the loss of predicting each from those before it (-100 is left out).

        ``reduction`` "none" gives a sum per text; ``return_logits`` the logits alone, without the last position;
        ``logits_to_keep`` restricts them to the last positions, or to the given ones.
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
        logits = self.cls.model(states, self.bert.model.embeddings.word)
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
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of each label given the tokens before it, with the configuration's label smoothing."""
        predicted, wanted = logits[:, :-1], labels[:, 1:].to(logits.device)
        loss = F.cross_entropy(
            predicted.flatten(0, 1), wanted.flatten(), reduction=reduction, label_smoothing=self.label_smoothing
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
    ) -> Any:
        """Continue ``input_ids`` (B, P); see :func:`.generation.generate`."""
        return generate(
            self, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, generation_config, options
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding, which is the output matrix too."""
        self.bert.set_input_embeddings(value)

    def _tied_names(self) -> set[str]:
        return set(_TIED)


# The names under which that library repeats two tensors.
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
    """Take the repeats out, after a look whether they repeat."""
    for alias, name in _TIED.items():
        repeat, original = state.pop(prefix + alias, None), state.get(prefix + name)
        if repeat is None or original is None or repeat.data_ptr() == original.data_ptr():
            continue
        if repeat.shape != original.shape or not torch.equal(repeat, original.to(repeat)):
            errors.append(f"{prefix}{alias} and {prefix}{name} are one tensor, yet they differ")


def _paired(x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Tensor | None]:
    """Texts (B, T, D) and their mask beside a memory of I items: one text is repeated, one item serves all."""
    if memory is None or len(x) == memory.items or memory.items == 1:
        return x, mask
    if len(x) != 1:
        raise InputError(f"{len(x)} texts do not go with {memory.items} images or questions: as many of each, or one")
    repeated = None if mask is None else mask.expand(memory.items, -1)
    return x.expand(memory.items, -1, -1), repeated
