"""`BlipForImageTextRetrieval`: how well texts match images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import accepts_v4_order, check_arguments
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.outputs import BlipImageTextMatchingModelOutput, OutputTuple
from openblip.compat.transformers_api.padding import first_states, select_columns
from openblip.compat.transformers_api.text import BlipTextModel
from openblip.compat.transformers_api.vision import BlipPreTrainedModel, BlipVisionModel


class BlipForImageTextRetrieval(BlipPreTrainedModel):
    """An image encoder, a text encoder, the ITM head and the ITC projections.

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    text_submodel = "text_encoder"
    task = "retrieval"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        text, vision, width = config.text_config, config.vision_config, config.image_text_hidden_size
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.vision_proj = nn.Linear(vision.hidden_size, width)
        self.text_proj = nn.Linear(text.hidden_size, width)
        self.itm_head = nn.Linear(text.hidden_size, 2)
        self.decoder_pad_token_id = text.pad_token_id
        self.decoder_start_token_id = text.bos_token_id
        self.post_init()

    @accepts_v4_order(
        *("input_ids", "pixel_values", "use_itm_head", "attention_mask", "output_attentions"),
        *("output_hidden_states", "return_dict", "interpolate_pos_encoding"),
    )
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool = True,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BlipImageTextMatchingModelOutput | OutputTuple:
        """Score texts and images.

        Token ids are used as they are. ITM was trained with [ENC] as the first token; `transformers` leaves this to the
        caller.

        Args:
            input_ids: Token ids (B, T).
            pixel_values: Normalized images (B, 3, S, S).
            use_itm_head: Compute ITM logits of pairs rather than ITC similarities.
            attention_mask: 1 for real tokens (B, T).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            output_attentions: Return attention weights of the image encoder.
            output_hidden_states: Return hidden states of the image encoder: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            `itm_score`: ITM logits (B, 2), column 1 for "match", or ITC cosine similarities (images, texts).
        """
        check_arguments(self, kwargs)
        vision = self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        image_states = vision.last_hidden_state
        text = self.text_encoder(
            input_ids,
            attention_mask,
            encoder_hidden_states=image_states if use_itm_head else None,
            return_dict=True,
        )
        states, columns = text.last_hidden_state, select_columns(attention_mask)
        cls_states = first_states(states, None if columns is None else columns.expand(len(states), -1))
        if use_itm_head:
            score = self.itm_head(cls_states)
        else:
            image_embeds = F.normalize(self.vision_proj(image_states[:, 0]), dim=-1)
            score = image_embeds @ F.normalize(self.text_proj(cls_states), dim=-1).T
        output = BlipImageTextMatchingModelOutput(
            itm_score=score,
            last_hidden_state=image_states,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            question_embeds=states,
        )
        return self._finish(output, return_dict)
