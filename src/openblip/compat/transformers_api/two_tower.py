"""`BlipModel`: a two-tower model as CLIP, with projections that no published BLIP checkpoint contains."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import accepts_v4_order, check_arguments
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.outputs import (
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    BlipOutput,
    OutputTuple,
)
from openblip.compat.transformers_api.text import BlipTextModel
from openblip.compat.transformers_api.vision import BlipPreTrainedModel, BlipVisionModel


class BlipModel(BlipPreTrainedModel):
    """An image and a text encoder with projections. For trained embeddings, use `BlipForImageTextRetrieval`.

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    text_submodel = "text_model"
    task = "two_tower"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        text, vision, width = config.text_config, config.vision_config, config.projection_dim
        self.projection_dim = width
        self.text_embed_dim, self.vision_embed_dim = text.hidden_size, vision.hidden_size
        self.text_model = BlipTextModel(text)
        self.vision_model = BlipVisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module."""
        super()._init_weights(module)
        if module is self:
            nn.init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    @accepts_v4_order(
        *("input_ids", "pixel_values", "attention_mask", "position_ids", "return_loss", "output_attentions"),
        *("output_hidden_states", "return_dict", "interpolate_pos_encoding"),
    )
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BlipOutput | OutputTuple:
        """Compare all images with all texts.

        Args:
            input_ids: Token ids (B, T).
            pixel_values: Normalized images (B, 3, S, S).
            attention_mask: 1 for real tokens (B, T).
            position_ids: Positions (B, T).
            return_loss: Return the contrastive loss, where image and text i are a pair.
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            Cosine similarities times the logit scale, and normalized embeddings (B, E).
        """
        check_arguments(self, kwargs)
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **options)
        text = self.text_model(input_ids, attention_mask, position_ids, return_dict=True, **options)
        image_embeds = F.normalize(self.visual_projection(vision.pooler_output), dim=-1)
        text_embeds = F.normalize(self.text_projection(text.pooler_output), dim=-1)
        logits_per_text = text_embeds @ image_embeds.to(text_embeds).T * self.logit_scale.exp()
        loss = None
        if return_loss:
            targets = torch.arange(len(logits_per_text), device=logits_per_text.device)
            text_loss = F.cross_entropy(logits_per_text, targets)
            loss = (text_loss + F.cross_entropy(logits_per_text.T, targets)) / 2
        output = BlipOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        return self._finish(output, return_dict)

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | OutputTuple:
        """Return the text transformer's output with projected `pooler_output` (B, E), not normalized.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T).
            position_ids: Positions (B, T).
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.

        Returns:
            The text transformer's output with projected `pooler_output` (B, E), not normalized.
        """
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output: BaseModelOutputWithPoolingAndCrossAttentions = self.text_model(
            input_ids, attention_mask, position_ids, return_dict=True, **options
        )
        output.pooler_output = self.text_projection(output.pooler_output)
        return self._finish(output, return_dict)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | OutputTuple:
        """Return the image encoder's output with projected `pooler_output` (B, E), not normalized.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.

        Returns:
            The image encoder's output with projected `pooler_output` (B, E), not normalized.
        """
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output: BaseModelOutputWithPooling = self.vision_model(
            pixel_values, interpolate_pos_encoding, return_dict=True, **options
        )
        output.pooler_output = self.visual_projection(output.pooler_output)
        return self._finish(output, return_dict)

    def get_multimodal_features(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """Return the pooled and projected states (B, E) of image-grounded texts, not normalized.

        Args:
            input_ids: Token ids (B, T).
            pixel_values: Normalized images (B, 3, S, S).
            attention_mask: 1 for real tokens (B, T).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.

        Returns:
            The pooled and projected states (B, E) of image-grounded texts, not normalized.
        """
        image_states = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        text = self.text_model(input_ids, attention_mask, encoder_hidden_states=image_states, return_dict=True)
        return self.text_projection(text.pooler_output)
