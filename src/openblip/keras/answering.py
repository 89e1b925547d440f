"""`TFBlipForQuestionAnswering`: visual question answering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.options import GenerationConfig
from openblip.compat.transformers_api.outputs import BlipTextVisionModelOutput, GenerateOutput, OutputTuple
from openblip.errors import ConfigError, InputError
from openblip.keras.backend import Tensor, keras, ops, stack_rows
from openblip.keras.encoders import TFBlipTextLMHeadModel, TFBlipTextModel, TFBlipVisionModel
from openblip.keras.generation import GeneratingModel, to_rows
from openblip.keras.padding import select_columns
from openblip.keras.text import Memory

_IGNORED_LABEL = -100


@keras.saving.register_keras_serializable("openblip")
class TFBlipForQuestionAnswering(GeneratingModel):
    """An image encoder, an image-grounded question encoder, and a question-grounded answer decoder.

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    task = "vqa"
    weight_names: ClassVar[Mapping[str, str]] = {
        "vision_model.model": "vision",
        "text_encoder.model": "encoder",
        "text_decoder.bert.model": "decoder",
        "text_decoder.head": "lm_head",
    }
    config: BlipConfig

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        text = self.config.text_config
        if text.encoder_hidden_size != text.hidden_size:
            raise ConfigError(
                f"image states must be as wide as question states ({text.hidden_size}), got "
                f"{text.encoder_hidden_size}: the configuration of transformers has one width for both, so it cannot "
                "describe VQA models with ViT-L"
            )
        self.vision_model = TFBlipVisionModel(self.config.vision_config)
        self.text_encoder = TFBlipTextModel(text, add_pooling_layer=False)
        self.text_decoder = TFBlipTextLMHeadModel(text)

    def call(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> BlipTextVisionModelOutput | OutputTuple:
        """Compute the loss of answers.

        Token ids are used as they are. As in `transformers`, no logits are returned, and the loss counts all labels
        except -100, including padding.

        Args:
            input_ids: Token ids (B, T) of the questions.
            pixel_values: Normalized images (B, 3, S, S).
            decoder_input_ids: Token ids (B, A) of the answers; by default the labels, with padding instead of -100.
            decoder_attention_mask: 1 for real tokens (B, A) of the answers.
            attention_mask: 1 for real tokens (B, T) of the questions.
            output_attentions: Return attention weights of the image encoder.
            output_hidden_states: Return hidden states of the image encoder.
            labels: Token ids (B, A) to predict from the tokens before them; -100 is ignored.
            return_dict: Return an output object rather than a tuple.
            training: Whether the model is trained.

        Returns:
            Image states, and the loss with labels.

        Raises:
            InputError: Both `labels` and `decoder_input_ids` are missing.
        """
        if labels is None and decoder_input_ids is None:
            raise InputError("labels or decoder_input_ids must be given; to answer questions, call generate")
        vision = self.vision_model(
            pixel_values=pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        question = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=vision.last_hidden_state,
            return_dict=True,
            training=training,
        )
        if decoder_input_ids is None:
            pad_id = self.config.text_config.pad_token_id
            decoder_input_ids = ops.where(ops.equal(labels, _IGNORED_LABEL), pad_id, labels)
        answer = self.text_decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=question.last_hidden_state,
            encoder_attention_mask=attention_mask,
            labels=labels,
            use_cache=False,
            return_dict=True,
            training=training,
        )
        output = BlipTextVisionModelOutput(
            loss=answer.loss,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )
        return self._finish(output, return_dict)

    def encode(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, *, hide_padding: bool = False
    ) -> Memory:
        """Return the memory of the decoder: the keys and values of image-grounded questions.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            input_ids: Token ids (B, T) of the questions.
            attention_mask: 1 for real tokens (B, T).
            hide_padding: Hide padding that all questions share, too, so that it never changes an answer.

        Returns:
            The keys and values of the questions.
        """
        image_states = self.vision_model.model(pixel_values)
        question = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            return_dict=True,
        )
        columns = ops.not_equal(attention_mask, 0) if hide_padding else select_columns(attention_mask)
        rows = question.last_hidden_state.shape[0]
        if rows is not None and rows != attention_mask.shape[0]:
            columns = ops.repeat(columns, rows, axis=0)
        return self.text_decoder.bert.model.project(question.last_hidden_state, columns)

    def generate(
        self,
        input_ids: Tensor | list[list[int]],
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        jit_compile: bool | None = None,
        **generate_kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Generate answers, by default greedily with at most 20 new tokens.

        As in `transformers`, the decoder attends to padding that all questions share. It does not attend to padding
        that longer questions in the batch cause, so that results do not depend on the other rows.

        Args:
            input_ids: Token ids (B, T) of the questions.
            pixel_values: Normalized images (B, 3, S, S).
            attention_mask: 1 for real tokens (B, T).
            generation_config: Options that override the model's own.
            seed: Seed of samples, which then depend on their own question only; `None` for NumPy's global generator.
            jit_compile: Compile by XLA. The default is the back end's: JAX does, TensorFlow does not.
            **generate_kwargs: Options that override `generation_config`.

        Returns:
            Token ids that start with [DEC], or an output object with `return_dict_in_generate=True`.

        Raises:
            InputError: An option or an input is invalid or not supported.
        """
        ids = to_rows(input_ids)
        masks = [[1] * len(row) for row in ids] if attention_mask is None else to_rows(attention_mask)
        mask = stack_rows(masks)
        select_columns(mask)  # a row of padding is reported before the model is compiled
        encode = self.compiled_function("encode", self.encode, jit_compile)
        memory = encode(ops.convert_to_tensor(pixel_values), stack_rows(ids), mask)
        rows = memory.layers[0][0].shape[0]
        prompts = [[self.config.text_config.bos_token_id]] * rows
        return self.continue_rows(prompts, [[1]] * rows, memory, generation_config, generate_kwargs, seed, jit_compile)
