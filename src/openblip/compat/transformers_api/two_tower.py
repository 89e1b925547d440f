"""``BlipModel``: image and text compared as in CLIP, by projections that no published BLIP checkpoint has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_order_of_4
from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.outputs import BlipOutput
from openblip.compat.transformers_api.text import BlipTextModel
from openblip.compat.transformers_api.vision import BlipVisionModel


class BlipModel(PreTrainedModel):
    """Two towers with bias-free projections. For embeddings that were trained, use the retrieval class."""

    config_class = BlipConfig
    task = "two_tower"
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, width = config.text_config, config.vision_config, config.projection_dim
        self.projection_dim = width
        self.text_model = BlipTextModel(text)
        self.vision_model = BlipVisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        self._fresh(self.visual_projection, self.text_projection)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))

    @accepts_order_of_4(
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
    ) -> Any:
        """Scaled cosines of all images and texts, and with ``return_loss`` the contrastive loss of pairs."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **asked)
        text = self.text_model(input_ids, attention_mask, position_ids, return_dict=True, **asked)
        image_embeds = F.normalize(self.visual_projection(vision.pooler_output), dim=-1)
        text_embeds = F.normalize(self.text_projection(text.pooler_output), dim=-1)
        per_text = text_embeds @ image_embeds.to(text_embeds).T * self.logit_scale.exp()
        output = BlipOutput(
            loss=_contrastive_loss(per_text) if return_loss else None,
            logits_per_image=per_text.T,
            logits_per_text=per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The text transformer's output, its ``pooler_output`` projected (B, E) and not normalised."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output = self.text_model(input_ids, attention_mask, position_ids, return_dict=True, **asked)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The image encoder's output, its ``pooler_output`` projected (B, E) and not normalised."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **asked)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def get_multimodal_features(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """Texts that read images, pooled and projected (B, E), not normalised."""
        image = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        text = self.text_model(input_ids, attention_mask, encoder_hidden_states=image, return_dict=True)
        return self.text_projection(text.pooler_output)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.text_model.set_input_embeddings(value)


def _contrastive_loss(per_text: Tensor) -> Tensor:
    """The mean of both directions' cross-entropies; pairs stand on the diagonal."""
    pairs = torch.arange(len(per_text), device=per_text.device)
    return (F.cross_entropy(per_text, pairs) + F.cross_entropy(per_text.T, pairs)) / 2
