"""`TFBlipForImageTextRetrieval`: how well texts match images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.outputs import BlipImageTextMatchingModelOutput, OutputTuple
from openblip.keras.backend import Tensor, keras, ops
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.encoders import TFBlipTextModel, TFBlipVisionModel
from openblip.keras.layers import dense
from openblip.keras.padding import first_states, select_columns
from openblip.keras.two_tower import normalize


@keras.saving.register_keras_serializable("openblip")
class TFBlipForImageTextRetrieval(TFBlipPreTrainedModel):
    """An image encoder, a text encoder, the ITM head and the ITC projections.

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    task = "retrieval"
    weight_names: ClassVar[Mapping[str, str]] = {
        "vision_model.model": "vision",
        "text_encoder.model": "text",
        "vision_proj": "vision_proj",
        "text_proj": "text_proj",
        "itm_head": "itm_head",
    }
    config: BlipConfig

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        text, vision, std = self.config.text_config, self.config.vision_config, self.config.initializer_range
        width = self.config.image_text_hidden_size
        self.vision_model = TFBlipVisionModel(vision)
        self.text_encoder = TFBlipTextModel(text, add_pooling_layer=False)
        self.vision_proj = dense(vision.hidden_size, width, std=std)
        self.text_proj = dense(text.hidden_size, width, std=std)
        self.itm_head = dense(text.hidden_size, 2, std=std)

    def call(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        use_itm_head: bool = True,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> BlipImageTextMatchingModelOutput | OutputTuple:
        """Score texts and images.

        Token ids are used as they are. ITM was trained with [ENC] as the first token; `transformers` leaves this to the
        caller.

        Args:
            input_ids: Token ids (B, T).
            pixel_values: Normalized images (B, 3, S, S).
            use_itm_head: Compute ITM logits of pairs rather than ITC similarities.
            attention_mask: 1 for real tokens (B, T).
            output_attentions: Return attention weights of the image encoder.
            output_hidden_states: Return hidden states of the image encoder.
            return_dict: Return an output object rather than a tuple.
            training: Whether the model is trained.

        Returns:
            `itm_score`: ITM logits (B, 2), column 1 for "match", or ITC cosine similarities (images, texts).
        """
        vision = self.vision_model(
            pixel_values=pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        image_states = vision.last_hidden_state
        text = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states if use_itm_head else None,
            return_dict=True,
            training=training,
        )
        states, columns = text.last_hidden_state, select_columns(attention_mask)
        if columns is not None and columns.shape[0] == 1 and states.shape[0] not in (None, 1):
            columns = ops.repeat(columns, states.shape[0], axis=0)
        cls_states = first_states(states, columns)
        if use_itm_head:
            score = self.itm_head(cls_states)
        else:
            image_embeds = normalize(self.vision_proj(image_states[:, 0]))
            score = ops.matmul(image_embeds, ops.transpose(normalize(self.text_proj(cls_states))))
        output = BlipImageTextMatchingModelOutput(
            itm_score=score,
            last_hidden_state=image_states,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            question_embeds=states,
        )
        return self._finish(output, return_dict)
