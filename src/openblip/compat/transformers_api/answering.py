"""``BlipForQuestionAnswering``: answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openblip.compat.transformers_api.base import accepts_order_of_4
from openblip.compat.transformers_api.captioning import GeneratingModel
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.generation import GenerationConfig, continue_rows
from openblip.compat.transformers_api.outputs import BlipTextVisionModelOutput
from openblip.compat.transformers_api.padding import kept_columns
from openblip.compat.transformers_api.text import BlipTextLMHeadModel, BlipTextModel
from openblip.compat.transformers_api.vision import BlipVisionModel
from openblip.errors import ConfigError, InputError

_IGNORED = -100  # a label that does not count


class BlipForQuestionAnswering(GeneratingModel):
    """An image encoder, a question encoder that reads its tokens, and an answer decoder that reads the question."""

    config_class = BlipConfig
    task = "vqa"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self.decoder_pad_token_id = config.text_config.pad_token_id
        self.decoder_start_token_id = config.text_config.bos_token_id

    @accepts_order_of_4(
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
    ) -> Any:
        """The loss of answers, if ``labels`` are given; ids are taken as they are, and no logits come back.

        Labels serve as the decoder's input too, with padding in the place of -100, unless ``decoder_input_ids`` are
        given. The loss counts every label but -100, padding too, as in that library.
        """
        if labels is None and decoder_input_ids is None:
            raise InputError("give labels (to train) or decoder_input_ids, or call generate (to answer)")
        vision = self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        question = self._read(input_ids, attention_mask, vision.last_hidden_state)
        if decoder_input_ids is None:
            assert labels is not None
            decoder_input_ids = labels.masked_fill(labels == _IGNORED, self.decoder_pad_token_id)
        answer = self.text_decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_hidden_states=question,
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
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | list[list[int]],
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Answers as ids, [DEC] first; greedy, with 20 new tokens, unless asked otherwise.

        The decoder sees every column of the question, padding too, as in that library; but not what only batch mates
        padded, so that every question is answered as if it came alone.
        """
        ids = torch.as_tensor(input_ids, device=pixel_values.device)
        image = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        question = self._read(ids, attention_mask, image)
        kept = kept_columns(attention_mask)
        seen = None if kept is None else kept.expand(len(question), -1)
        text = self.config.text_config
        rows = [[self.decoder_start_token_id]] * len(question)
        return continue_rows(
            self.text_decoder,
            rows,
            [[1]] * len(rows),
            question,
            seen,
            generation_config,
            dict(eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id, **generate_kwargs),
        )

    def _read(self, ids: Tensor, mask: Tensor | None, image: Tensor) -> Tensor:
        """The states of questions, if the answer decoder was built for such."""
        text = self.config.text_config
        if text.encoder_hidden_size != text.hidden_size:
            raise ConfigError(
                f"this answer decoder reads states {text.encoder_hidden_size} wide, but questions have states of "
                f"{text.hidden_size}: the configuration of transformers has no other place for the width of the image "
                "encoder, so that VQA with another width (ViT-L) cannot run in it. Use openblip.load for such a model"
            )
        return self.text_encoder(ids, mask, encoder_hidden_states=image, return_dict=True).last_hidden_state

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding of the question encoder."""
        self.text_encoder.set_input_embeddings(value)
