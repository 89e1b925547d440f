"""`BlipForConditionalGeneration`: image captioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from openblip.compat.transformers_api.base import accepts_v4_order, check_arguments
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.generation import GenerationMethods, continue_rows
from openblip.compat.transformers_api.options import (
    GenerationConfig,
    Rows,
    caption_prompts,
    read_generation_config,
    write_generation_config,
)
from openblip.compat.transformers_api.outputs import (
    BlipForConditionalGenerationModelOutput,
    GenerateOutput,
    OutputTuple,
)
from openblip.compat.transformers_api.padding import to_rows
from openblip.compat.transformers_api.text import BlipTextLMHeadModel
from openblip.compat.transformers_api.vision import BlipPreTrainedModel, BlipVisionModel


class GeneratingModel(GenerationMethods, BlipPreTrainedModel):
    """A model with a `text_decoder` that generates text, and a `generation_config` with default options for it."""

    text_decoder: BlipTextLMHeadModel
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        f"text_decoder.{alias}": f"text_decoder.{name}"
        for alias, name in BlipTextLMHeadModel._tied_weights_keys.items()
    }

    @property
    def generation_config(self) -> GenerationConfig:
        """Default options of `generate`, stored in `generation_config.json`."""
        return self.text_decoder.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.text_decoder.generation_config = value

    def _read_extra_files(self, folder: Path) -> None:
        self.generation_config = read_generation_config(folder)

    def _write_extra_files(self, folder: Path) -> None:
        write_generation_config(self.generation_config, self.config.text_config, folder)


class BlipForConditionalGeneration(GeneratingModel):
    """An image encoder (`vision_model`) and an image-grounded text decoder (`text_decoder`).

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    text_submodel = "text_decoder"
    task = "caption"
    main_input_name = "pixel_values"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.decoder_input_ids = config.text_config.bos_token_id
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.post_init()

    @accepts_v4_order(
        *("pixel_values", "input_ids", "attention_mask", "output_attentions", "output_hidden_states", "labels"),
        *("return_dict", "interpolate_pos_encoding"),
    )
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int | Tensor = 0,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BlipForConditionalGenerationModelOutput | OutputTuple:
        """Compute next-token logits of captions and, with labels, their loss.

        Token ids are used as they are; BLIP was trained with [DEC] as the first token. As in `transformers`, the loss
        counts all labels except -100, including padding.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T).
            labels: Token ids (B, T) to predict from the tokens before them; -100 is ignored.
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            logits_to_keep: Number of last positions, or the positions, to compute logits of; 0 for all.
            output_attentions: Return attention weights of the image encoder.
            output_hidden_states: Return hidden states of the image encoder: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            Logits (B, T, V), image states, and the loss with labels.
        """
        check_arguments(self, kwargs)
        vision = self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        text = self.text_decoder(
            input_ids,
            attention_mask,
            encoder_hidden_states=vision.last_hidden_state,
            labels=labels,
            use_cache=False,
            logits_to_keep=logits_to_keep,
            return_dict=True,
        )
        output = BlipForConditionalGenerationModelOutput(
            loss=text.loss,
            logits=text.logits,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )
        return self._finish(output, return_dict)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | list[list[int]] | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Generate captions, by default greedily with at most 20 new tokens.

        Captions start with [DEC]. The first token of a prompt is replaced by [DEC], and its last token, expected to be
        [SEP], is removed. In a batch of prompts of different lengths, results do not depend on the other rows.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            input_ids: Token ids (B, T) of prompts.
            attention_mask: 1 for real tokens (B, T).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            generation_config: Options that override the model's own.
            **generate_kwargs: Options that override `generation_config`.

        Returns:
            Token ids including the prompts, or an output object with `return_dict_in_generate=True`.

        Raises:
            InputError: An option or an input is invalid or not supported.
        """
        text = self.config.text_config
        image_states = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        rows: Rows | None = None
        masks: Rows | None = None
        if input_ids is not None:
            rows = to_rows(torch.as_tensor(input_ids))
            masks = None if attention_mask is None else to_rows(attention_mask)
        prompts, masks = caption_prompts(rows, masks, len(image_states), text)
        return continue_rows(
            self.text_decoder,
            prompts,
            masks,
            image_states,
            None,
            generation_config,
            dict(eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id, **generate_kwargs),
        )
