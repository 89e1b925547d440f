"""`BlipForQuestionAnswering`: visual question answering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openblip.compat.transformers_api.base import accepts_v4_order, check_arguments
from openblip.compat.transformers_api.captioning import GeneratingModel
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.generation import continue_rows
from openblip.compat.transformers_api.options import GenerationConfig
from openblip.compat.transformers_api.outputs import BlipTextVisionModelOutput, GenerateOutput, OutputTuple
from openblip.compat.transformers_api.padding import select_columns
from openblip.compat.transformers_api.text import BlipTextLMHeadModel, BlipTextModel
from openblip.compat.transformers_api.vision import BlipVisionModel
from openblip.errors import ConfigError, InputError

_IGNORED_LABEL = -100


class BlipForQuestionAnswering(GeneratingModel):
    """An image encoder, an image-grounded question encoder, and a question-grounded answer decoder.

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    text_submodel = "text_encoder"
    task = "vqa"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.decoder_start_token_id = config.text_config.bos_token_id
        self.post_init()

    @accepts_v4_order(
        *("input_ids", "pixel_values", "decoder_input_ids", "decoder_attention_mask", "attention_mask"),
        *("output_attentions", "output_hidden_states", "labels", "return_dict", "interpolate_pos_encoding"),
    )
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
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
            labels: Token ids (B, A) to predict from the tokens before them; -100 is ignored.
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            output_attentions: Return attention weights of the image encoder.
            output_hidden_states: Return hidden states of the image encoder: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            Image states, and the loss with labels.

        Raises:
            InputError: Both `labels` and `decoder_input_ids` are missing.
            ConfigError: The question encoder's width differs from the image encoder's.
        """
        check_arguments(self, kwargs)
        if labels is None and decoder_input_ids is None:
            raise InputError("labels or decoder_input_ids must be given; to answer questions, call generate")
        vision = self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        question_states = self._encode_question(input_ids, attention_mask, vision.last_hidden_state)
        if decoder_input_ids is None:
            assert labels is not None
            decoder_input_ids = labels.masked_fill(labels == _IGNORED_LABEL, self.decoder_pad_token_id)
        answer = self.text_decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_hidden_states=question_states,
            encoder_attention_mask=attention_mask,
            labels=labels,
            use_cache=False,
            return_dict=True,
        )
        output = BlipTextVisionModelOutput(
            loss=answer.loss,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )
        return self._finish(output, return_dict)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | list[list[int]],
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Generate answers, by default greedily with at most 20 new tokens.

        As in `transformers`, the decoder attends to padding that all questions share. It does not attend to padding
        that longer questions in the batch cause, so that results do not depend on the other rows.

        Args:
            input_ids: Token ids (B, T) of the questions.
            pixel_values: Normalized images (B, 3, S, S).
            attention_mask: 1 for real tokens (B, T).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            generation_config: Options that override the model's own.
            **generate_kwargs: Options that override `generation_config`.

        Returns:
            Token ids that start with [DEC], or an output object with `return_dict_in_generate=True`.

        Raises:
            InputError: An option or an input is invalid or not supported.
            ConfigError: The question encoder's width differs from the image encoder's.
        """
        ids = torch.as_tensor(input_ids, device=pixel_values.device)
        image_states = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        question_states = self._encode_question(ids, attention_mask, image_states)
        columns = select_columns(attention_mask)
        text = self.config.text_config
        prompts = [[self.decoder_start_token_id]] * len(question_states)
        return continue_rows(
            self.text_decoder,
            prompts,
            [[1]] * len(prompts),
            question_states,
            None if columns is None else columns.expand(len(question_states), -1),
            generation_config,
            dict(eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id, **generate_kwargs),
        )

    def _encode_question(self, ids: Tensor, mask: Tensor | None, image_states: Tensor) -> Tensor:
        """Return the states (B, T, D) of image-grounded questions."""
        text = self.config.text_config
        if text.encoder_hidden_size != text.hidden_size:
            raise ConfigError(
                f"image states must be as wide as question states ({text.hidden_size}), got "
                f"{text.encoder_hidden_size}: the configuration of transformers has one width for both, so it cannot "
                "describe VQA models with ViT-L. Use openblip.load instead"
            )
        return self.text_encoder(ids, mask, encoder_hidden_states=image_states, return_dict=True).last_hidden_state
