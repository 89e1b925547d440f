"""`BlipTextModel` and `BlipTextLMHeadModel`: the text transformer, without and with its language head.

Shapes: B texts, I items (images or questions), T tokens, M memory tokens, D width, W memory width, V vocabulary,
H heads, K width of a head.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import (
    PreTrainedModel,
    accepts_v4_order,
    check_arguments,
    select_states,
    strip_prefix,
)
from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.generation import GenerationMethods, generate
from openblip.compat.transformers_api.options import GenerationConfig
from openblip.compat.transformers_api.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    GenerateOutput,
    OutputTuple,
)
from openblip.compat.transformers_api.padding import compute_positions, first_states, select_columns
from openblip.compat.transformers_api.text_layers import (
    BlipTextEmbeddings,
    BlipTextEncoder,
    BlipTextOnlyMLMHead,
    BlipTextPooler,
    TextCache,
)
from openblip.errors import InputError
from openblip.model.layers import Trace, causal_bias, padding_bias

_BIAS_AXES = 4


class BlipTextPreTrainedModel(PreTrainedModel):
    """Base class of the text models."""

    config_class = BlipTextConfig
    task = "text"
    config: BlipTextConfig
    base_model_prefix = "bert"


class BlipTextModel(BlipTextPreTrainedModel):
    """The text transformer as encoder or, with `is_decoder=True`, as decoder.

    Args:
        config: Sizes of the transformer.
        add_pooling_layer: Add the pooler, which only `BlipModel` uses.
    """

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        config.to_model_config()  # raises if there is no such transformer
        self.embeddings = BlipTextEmbeddings(config)
        self.encoder = BlipTextEncoder(config)
        self.pooler = BlipTextPooler(config) if add_pooling_layer else None
        self.post_init()

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
        **kwargs: Any,
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
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            States (B, T, D).

        Raises:
            InputError: Inputs are missing, exclude each other or differ in their number of rows.
        """
        check_arguments(self, kwargs)
        if past_key_values is not None and not is_decoder:
            raise InputError("past_key_values need is_decoder=True: an encoder also attends to later tokens")
        attentions = self._option(output_attentions, "output_attentions")
        hidden = self._option(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden is not False else None
        columns = select_columns(attention_mask)
        cache = past_key_values
        recomputes = self.training and self.encoder.gradient_checkpointing  # activations, in the backward pass
        if cache is None and is_decoder and self._option(use_cache, "use_cache") and not recomputes:
            cache = TextCache()
        start = 0 if cache is None else cache.length
        if encoder_embeds is not None:
            x = encoder_embeds
        else:
            x = self._embed(input_ids, inputs_embeds, position_ids, columns, cache)
        states, memory_bias = self._match_items(encoder_hidden_states, encoder_attention_mask, cache)
        if states is not None and len(states) not in (1, len(x)) and not (cache is not None and cache.memory):
            if len(x) != 1:
                raise InputError(f"{len(x)} texts must match {len(states)} images or questions, or either must be 1")
            x = x.expand(len(states), -1, -1)
            attention_mask = None if attention_mask is None else attention_mask.expand(len(states), -1)
        encoded = self.encoder(
            x,
            attention_mask=_attention_bias(x, attention_mask, start, causal=is_decoder),
            encoder_hidden_states=states,
            encoder_attention_mask=memory_bias,
            past_key_values=cache,
            use_cache=False,
            **({} if trace is None else {"trace": trace}),
        )
        x = encoded.last_hidden_state
        pooled = None
        if self.pooler is not None:
            first = first_states(x, columns if start == 0 else None)
            pooled = self.pooler(first[:, None])
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x,
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
        given = ids if words is None else words
        if given is None or (ids is not None and words is not None):
            raise InputError("either input_ids or inputs_embeds must be given, and not both")
        start = 0 if cache is None else cache.length
        if positions is None and start == 0:
            positions = compute_positions(columns)
        elif positions is None and cache is not None and cache.lengths is not None:
            positions = cache.lengths[:, None] + torch.arange(given.shape[1], device=given.device)
        if cache is not None:
            if start == 0 and columns is not None:
                cache.lengths = columns.sum(1)
            elif cache.lengths is not None:
                cache.lengths = cache.lengths + given.shape[1]
        return self.embeddings(input_ids=ids, position_ids=positions, inputs_embeds=words, past_key_values_length=start)

    @staticmethod
    def _match_items(
        states: Tensor | None, mask: Tensor | None, cache: TextCache | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the states to attend to with a row for each row of their mask, and their bias if any is hidden."""
        if states is None:
            return None, None
        if mask is not None and mask.ndim == _BIAS_AXES:  # an additive bias of `generate`
            return states, mask
        columns = select_columns(mask)
        if columns is not None and len(columns) != len(states) and not (cache is not None and cache.memory):
            if len(states) != 1:
                raise InputError(
                    f"encoder_attention_mask must have a row for each of {len(states)} images or questions, got "
                    f"{len(columns)} rows"
                )
            states = states.expand(len(columns), -1, -1)
        return states, None if columns is None else padding_bias(columns, states.dtype)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding.

        Returns:
            The word embedding.
        """
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding.

        Args:
            value: The new embedding.
        """
        embeddings: Any = self.embeddings
        embeddings.word_embeddings = value

    @classmethod
    def _select_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the text transformer's tensors of a `BlipModel`, or all tensors of a text transformer."""
        return strip_prefix(tensors, "text_model.") or tensors


def _attention_bias(x: Tensor, mask: Tensor | None, start: int, *, causal: bool) -> Tensor | None:
    """Return the additive self-attention bias, broadcastable to (B, H, T, S), or `None` if nothing is hidden.

    Args:
        x: Embedded states (B, T, D).
        mask: 1 for tokens, 0 for padding (B, S).
        start: Number of cached tokens.
        causal: Whether tokens attend only to themselves and to earlier tokens.
    """
    length = x.shape[1]
    if not causal:
        return None if mask is None else padding_bias(mask, x.dtype)
    if length == 1 and mask is None:
        return None
    return causal_bias(start + length, x.dtype, x.device, mask)[:, :, start:]


class BlipTextLMHeadModel(GenerationMethods, BlipTextPreTrainedModel):
    """A text decoder with a language head whose output matrix is the word embedding.

    Args:
        config: Sizes of the transformer.
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config)
        self.bert = BlipTextModel(config, add_pooling_layer=False)
        self.cls = BlipTextOnlyMLMHead(config)
        self.label_smoothing = config.label_smoothing
        self.generation_config = GenerationConfig()
        self.post_init()
        untyped: Any = self  # torch's stubs declare other signatures
        untyped.register_load_state_dict_pre_hook(_check_tied)
        untyped.register_load_state_dict_post_hook(_tie_again)

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
        shift_labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
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
            shift_labels: Labels (B, T) that are already shifted, instead of shifting `labels`.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            Logits (B, T, V), and the loss with labels.
        """
        check_arguments(self, kwargs)
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
        logits = self.cls(states)
        if return_logits:
            return logits[:, :-1].contiguous()
        loss = None if labels is None else self.loss(logits, labels, reduction, shift_labels)
        output = CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        return self._finish(output, return_dict)

    def loss(
        self, logits: Tensor, labels: Tensor, reduction: str = "mean", shift_labels: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy of labels given the tokens before them, with label smoothing.

        Args:
            logits: Logits (B, T, V).
            labels: Token ids (B, T); -100 is ignored.
            reduction: "mean" for a scalar, "none" for a sum per text (B,).
            shift_labels: Labels (B, T) that are already shifted.

        Returns:
            The cross-entropy of labels given the tokens before them, with label smoothing.
        """
        if shift_labels is None:
            logits, targets = logits[:, :-1], labels[:, 1:].to(logits.device)
        else:
            targets = shift_labels.to(logits.device)
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

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the word embedding; `tie_weights` makes it the output matrix, too.

        Args:
            new_embeddings: The new embedding.
        """
        self.bert.set_input_embeddings(new_embeddings)

    def get_output_embeddings(self) -> nn.Module:
        """Return the output matrix, which is tied to the word embedding.

        Returns:
            The output matrix.
        """
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output matrix and its bias.

        Args:
            new_embeddings: The new output matrix.
        """
        head: Any = self.cls.predictions
        head.decoder, head.bias = new_embeddings, new_embeddings.bias

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie the output matrix to the word embedding, and its bias to the bias of the head.

        Args:
            missing_keys: Ignored; an argument of `transformers`.
            recompute_mapping: Ignored; an argument of `transformers`.
        """
        head, words = self.cls.predictions, self.bert.get_input_embeddings()
        if not (isinstance(head.decoder, nn.Linear) and isinstance(words, nn.Embedding)):
            return  # somebody replaced them
        count = words.weight.shape[0]
        if len(head.bias) != count:
            bias = head.bias.new_zeros(count)
            kept = min(count, len(head.bias))
            bias[:kept] = head.bias.data[:kept]
            head.bias = nn.Parameter(bias, requires_grad=head.bias.requires_grad)
        head.decoder.weight = words.weight
        head.decoder.bias = head.bias
        head.decoder.out_features = count


def _is_tied(model: BlipTextLMHeadModel) -> bool:
    head, words = model.cls.predictions, model.bert.get_input_embeddings()
    return getattr(head.decoder, "weight", None) is getattr(words, "weight", False)


def _check_tied(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Report tied tensors that differ."""
    assert isinstance(module, BlipTextLMHeadModel)
    if not _is_tied(module):
        return
    vars(module)["_ties_again"] = True
    for alias, name in module._tied_weights_keys.items():
        tied, original = state.get(prefix + alias), state.get(prefix + name)
        if tied is None or original is None or tied.data_ptr() == original.data_ptr():
            continue
        if tied.shape != original.shape or not torch.equal(tied, original.to(tied)):
            errors.append(f"{prefix}{alias} and {prefix}{name} must be equal: they are one tensor")


def _tie_again(module: nn.Module, _keys: object) -> None:
    """Tie tensors that `load_state_dict(assign=True)` has set one by one."""
    assert isinstance(module, BlipTextLMHeadModel)
    if vars(module).pop("_ties_again", False) and not _is_tied(module):
        module.tie_weights()
