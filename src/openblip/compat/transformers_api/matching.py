"""``BlipForImageTextRetrieval``: does a text describe an image?"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_order_of_4
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.outputs import BlipImageTextMatchingModelOutput
from openblip.compat.transformers_api.padding import first_states, kept_columns
from openblip.compat.transformers_api.text import BlipTextModel
from openblip.compat.transformers_api.vision import BlipVisionModel


class BlipForImageTextRetrieval(PreTrainedModel):
    """An image encoder, one text encoder, the ITM head and the projections of ITC."""

    config_class = BlipConfig
    task = "retrieval"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, width = config.text_config, config.vision_config, config.image_text_hidden_size
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.vision_proj = nn.Linear(vision.hidden_size, width)
        self.text_proj = nn.Linear(text.hidden_size, width)
        self.itm_head = nn.Linear(text.hidden_size, 2)
        self._fresh(self.vision_proj, self.text_proj, self.itm_head)
        self.decoder_pad_token_id = text.pad_token_id
        self.decoder_start_token_id = text.bos_token_id

    @accepts_order_of_4(
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
    ) -> Any:
        """``itm_score``: ITM logits (B, 2) of pairs, column 1 means "match"; or ITC cosines (images, texts).

        Ids are taken as they are: ITM was trained with [ENC] first, which that library leaves to the caller.
        """
        vision = self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        image = vision.last_hidden_state
        read = image if use_itm_head else None
        text = self.text_encoder(input_ids, attention_mask, encoder_hidden_states=read, return_dict=True)
        states, kept = text.last_hidden_state, kept_columns(attention_mask)
        first = first_states(states, None if kept is None else kept.expand(len(states), -1))
        if use_itm_head:
            score = self.itm_head(first)
        else:
            image_embeds = F.normalize(self.vision_proj(image[:, 0]), dim=-1)
            score = image_embeds @ F.normalize(self.text_proj(first), dim=-1).T
        output = BlipImageTextMatchingModelOutput(
            itm_score=score,
            last_hidden_state=image,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            question_embeds=states,
        )
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.text_encoder.set_input_embeddings(value)
