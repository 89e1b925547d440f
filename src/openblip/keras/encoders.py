"""`TFBlipVisionModel`, `TFBlipTextModel` and `TFBlipTextLMHeadModel`: the two encoders, and the text decoder.

Shapes: B texts, I items (images or questions), T tokens, M memory tokens, S side of an image, N patches, D width,
W memory width, V vocabulary, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from openblip.compat.transformers_api.config import BlipTextConfig, BlipVisionConfig
from openblip.compat.transformers_api.outputs import (
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    OutputTuple,
)
from openblip.errors import InputError
from openblip.keras.backend import Tensor, keras, ops
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.layers import Trace, causal_bias, padding_bias
from openblip.keras.padding import compute_positions, first_states, select_columns
from openblip.keras.text import Cache, LanguageHead, Memory, TextTransformer
from openblip.keras.vision import VisionTransformer

_IGNORED_LABEL = -100


@keras.saving.register_keras_serializable("openblip")
class TFBlipVisionModel(TFBlipPreTrainedModel):
    """The image encoder.

    Args:
        config: Sizes of the encoder.
    """

    config_class = BlipVisionConfig
    task = "vision"
    weight_names: ClassVar[Mapping[str, str]] = {"model": ""}
    prefix_in_model = "vision_model."
    config: BlipVisionConfig

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        self.model = VisionTransformer(self.config.to_model_config())

    def call(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> BaseModelOutputWithPooling | OutputTuple:
        """Encode images. As in `transformers`, the pooled [CLS] state is normalized a second time.

        Args:
            pixel_values: Normalized images, channels first (B, 3, S, S).
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
            return_dict: Return an output object rather than a tuple.
            training: Whether the model is trained.

        Returns:
            States (B, N + 1, D) of N patches, and the pooled state (B, D).

        Raises:
            InputError: `pixel_values` is missing or of another size.
        """
        if pixel_values is None:
            raise InputError("pixel_values must be given")
        attentions = self._option(output_attentions, "output_attentions")
        hidden = self._option(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden else None
        states = self.model(pixel_values, trace=trace)
        output = BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.model.norm(states[:, :1])[:, 0],
            hidden_states=tuple(trace.hidden) if trace and hidden else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
        )
        return self._finish(output, return_dict)


@keras.saving.register_keras_serializable("openblip")
class TFBlipTextModel(TFBlipPreTrainedModel):
    """The text transformer as encoder or, with `is_decoder=True`, as decoder.

    Args:
        config: Sizes of the transformer.
        add_pooling_layer: Add the pooler, which only `TFBlipModel` uses.
        dtype: Name of a dtype policy of Keras.
        name: Name of the model.
    """

    config_class = BlipTextConfig
    task = "text"
    weight_names: ClassVar[Mapping[str, str]] = {"model": ""}
    prefix_in_model = "text_model."
    config: BlipTextConfig

    def __init__(
        self,
        config: BlipTextConfig,
        add_pooling_layer: bool = True,
        *,
        dtype: str | None = None,
        name: str | None = None,
    ) -> None:
        self._has_pooler = add_pooling_layer
        super().__init__(config, dtype=dtype, name=name)

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        self.model = TextTransformer(self.config.to_model_config(), pooler=self._has_pooler)

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: None = None,
        inputs_embeds: Tensor | None = None,
        encoder_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        is_decoder: bool = False,
        training: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | OutputTuple:
        """Encode texts. Token ids are used as they are.

        A single item of `encoder_hidden_states` serves all texts, and a single text is combined with all items.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T); with a cache, cached tokens included. Padding that longer texts in
                the batch cause never changes a row.
            position_ids: Positions (B, T); by default, tokens are counted.
            head_mask: Must be `None`.
            inputs_embeds: Word embeddings (B, T, D) instead of `input_ids`.
            encoder_embeds: Embeddings (B, T, D) to use without the embedding layer's norm and positions.
            encoder_hidden_states: States (I, M, W) for cross-attention.
            encoder_attention_mask: Attention mask (I, M) of these states. Padding that all items share is not masked.
            past_key_values: Per layer keys and values (B, H, T, K) of earlier tokens of a decoder.
            use_cache: Return keys and values from a decoder.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
            return_dict: Return an output object rather than a tuple.
            is_decoder: Use causal attention.
            training: Whether the model is trained.

        Returns:
            States (B, T, D).

        Raises:
            InputError: Inputs are missing, exclude each other or differ in their number of rows.
        """
        if past_key_values is not None and not is_decoder:
            raise InputError("past_key_values need is_decoder=True: an encoder also attends to later tokens")
        if head_mask is not None:
            raise InputError("head_mask is not supported: transformers 5 removed it")
        attentions = self._option(output_attentions, "output_attentions")
        hidden = self._option(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden else None
        columns = select_columns(attention_mask)
        start = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        if encoder_embeds is not None:
            x = encoder_embeds
        else:
            x = self._embed(input_ids, inputs_embeds, position_ids, columns, start)
        memory = self._project_memory(encoder_hidden_states, select_columns(encoder_attention_mask))
        if memory is not None:
            x, attention_mask, columns = _pair_texts(x, attention_mask, columns, memory)
        if is_decoder:
            bias = causal_bias(start + x.shape[1], x.dtype, attention_mask)[:, :, start:]
        else:
            bias = None if attention_mask is None else padding_bias(attention_mask, x.dtype)
        states, cache = self.model(x, bias, memory, past_key_values, trace=trace)
        pooled = None
        if self.model.pooler is not None:
            pooled = self.model.pool(first_states(states, columns if past_key_values is None else None))
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states,
            pooler_output=pooled,
            past_key_values=cache if is_decoder and self._option(use_cache, "use_cache") else None,
            hidden_states=tuple(trace.hidden) if trace and hidden else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
            cross_attentions=tuple(trace.cross_weights) if trace and attentions and memory is not None else None,
        )
        return self._finish(output, return_dict)

    def _embed(
        self, ids: Tensor | None, words: Tensor | None, positions: Tensor | None, columns: Tensor | None, start: int
    ) -> Tensor:
        """Return the input of the first layer (B, T, D)."""
        if (ids is None) == (words is None):
            raise InputError("either input_ids or inputs_embeds must be given, and not both")
        tokens: Tensor = ids if words is None else words
        length = tokens.shape[1]
        if positions is None:
            positions = compute_positions(columns)
            if positions is not None:
                positions = positions[:, start:]
            elif start:
                positions = ops.arange(start, start + length, dtype="int32")[None]
        return self.model.embeddings(ids, positions, words)

    def _project_memory(self, states: Tensor | None, columns: Tensor | None) -> Memory | None:
        """Return the keys and values of cross-attention."""
        if states is None:
            return None
        if columns is not None and None not in (columns.shape[0], states.shape[0]):
            masks, items = columns.shape[0], states.shape[0]
            if masks != items and items != 1:
                raise InputError(
                    f"encoder_attention_mask must have a row for each of {items} images or questions, got {masks} rows"
                )
            states = ops.repeat(states, masks // items, axis=0) if masks != items else states
        return self.model.project(states, columns)


def _pair_texts(
    x: Tensor, mask: Tensor | None, columns: Tensor | None, memory: Memory
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Repeat a single text for all items; several texts can share a single item."""
    rows, items = x.shape[0], memory.layers[0][0].shape[0]
    if None in (rows, items) or items in (1, rows):
        return x, mask, columns
    if rows != 1:
        raise InputError(f"{rows} texts must match {items} images or questions, or either must be 1")
    x, mask, columns = (None if table is None else ops.repeat(table, items, axis=0) for table in (x, mask, columns))
    return x, mask, columns


@keras.saving.register_keras_serializable("openblip")
class TFBlipTextLMHeadModel(TFBlipPreTrainedModel):
    """A text decoder with a language head whose output matrix is the word embedding.

    Args:
        config: Sizes of the transformer.
    """

    config_class = BlipTextConfig
    task = "text"
    weight_names: ClassVar[Mapping[str, str]] = {"bert.model": ""}
    config: BlipTextConfig

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        self.bert = TFBlipTextModel(self.config, add_pooling_layer=False)
        self.head = LanguageHead(self.config.to_model_config())

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        return_logits: bool = False,
        is_decoder: bool = True,
        training: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | OutputTuple | Tensor:
        """Compute next-token logits and, with labels, their loss.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T).
            position_ids: Positions (B, T).
            head_mask: Must be `None`.
            inputs_embeds: Word embeddings (B, T, D) instead of `input_ids`.
            encoder_hidden_states: States (I, M, W) for cross-attention.
            encoder_attention_mask: Attention mask (I, M) of these states.
            labels: Token ids (B, T) to predict from the tokens before them; -100 is ignored.
            past_key_values: Per layer keys and values of earlier tokens.
            use_cache: Return keys and values; never with labels.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
            return_dict: Return an output object rather than a tuple.
            return_logits: Return only the logits, without the last position.
            is_decoder: Use causal attention.
            training: Whether the model is trained.

        Returns:
            Logits (B, T, V), and the loss with labels.
        """
        text = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            is_decoder=is_decoder,
            training=training,
        )
        logits = self.logits(text.last_hidden_state)
        if return_logits:
            return logits[:, :-1]
        output = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else language_loss(logits, labels, self.config.label_smoothing),
            logits=logits,
            past_key_values=text.past_key_values,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
            cross_attentions=text.cross_attentions,
        )
        return self._finish(output, return_dict)

    def logits(self, states: Tensor) -> Tensor:
        """Return next-token logits.

        Args:
            states: States (B, T, D).

        Returns:
            Logits (B, T, V).
        """
        return self.head(states, self.bert.model.embeddings.word.embeddings)


def language_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of labels given the tokens before them, with label smoothing.

    Args:
        logits: Logits (B, T, V).
        labels: Token ids (B, T); -100 is ignored.
        smoothing: Share of the probability that is spread over the whole vocabulary.

    Returns:
        The loss, a scalar.
    """
    logits, targets = ops.cast(logits[:, :-1], "float32"), labels[:, 1:]
    counts = ops.not_equal(targets, _IGNORED_LABEL)
    losses = ops.sparse_categorical_crossentropy(ops.where(counts, targets, 0), logits, from_logits=True)
    if smoothing:
        spread = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        losses = (1.0 - smoothing) * losses + smoothing * spread
    weights = ops.cast(counts, losses.dtype)
    return ops.sum(losses * weights) / ops.maximum(ops.sum(weights), 1.0)
