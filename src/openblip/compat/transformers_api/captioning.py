"""``BlipForConditionalGeneration``: captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_order_of_4
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.generation import GenerationConfig, continue_rows
from openblip.compat.transformers_api.outputs import BlipForConditionalGenerationModelOutput
from openblip.compat.transformers_api.padding import rows_alone
from openblip.compat.transformers_api.text import BlipTextLMHeadModel
from openblip.compat.transformers_api.vision import BlipVisionModel


class GeneratingModel(PreTrainedModel):
    """A model whose ``text_decoder`` generates; it keeps the defaults for that in ``generation_config``."""

    text_decoder: BlipTextLMHeadModel

    @property
    def generation_config(self) -> GenerationConfig:
        """Defaults of :meth:`generate`, read from and written to ``generation_config.json``."""
        return self.text_decoder.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.text_decoder.generation_config = value

    def _read_beside(self, folder: Path) -> None:
        if (folder / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(folder)

    def _write_beside(self, folder: Path) -> None:
        text = self.config.text_config
        tokens = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        GenerationConfig(**{**tokens, **self.generation_config.to_dict()}).save_pretrained(folder)


class BlipForConditionalGeneration(GeneratingModel):
    """An image encoder, ``vision_model``, and a decoder that reads its tokens, ``text_decoder``."""

    config_class = BlipConfig
    task = "caption"
    main_input_name = "pixel_values"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.decoder_input_ids = config.text_config.bos_token_id
        self.decoder_pad_token_id = config.text_config.pad_token_id

    @accepts_order_of_4(
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
    ) -> Any:
        """Logits (B, T, V) of texts, whose ids are taken as they are (training would put [DEC] first), and their loss.

        The loss counts every label but -100, padding too, as in that library.
        """
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
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | list[list[int]] | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Captions as ids, prompt included; greedy, with 20 new tokens, unless asked otherwise.

        Of a prompt, the first token becomes [DEC] and the last, which is taken for [SEP], is dropped; the caller's
        tensor stays as it is. Without a prompt, [DEC] alone starts the text. In a batch of mixed lengths every row is
        continued as if it came alone.
        """
        text = self.config.text_config
        image = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        if input_ids is None:
            input_ids = torch.tensor([[text.bos_token_id, text.eos_token_id]] * len(image))
        ids = torch.as_tensor(input_ids)
        rows, masks = rows_alone(ids, (ids != text.pad_token_id) if attention_mask is None else attention_mask)
        if attention_mask is None:
            masks = [[1, *mask[1:]] for mask in masks]  # that library looks for padding after [DEC] was set
        return continue_rows(
            self.text_decoder,
            [[text.bos_token_id, *row[1:-1]] for row in rows],
            [mask[:-1] for mask in masks],
            image,
            None,
            generation_config,
            dict(eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id, **generate_kwargs),
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.text_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.text_decoder.set_input_embeddings(value)
