"""`TFBlipModel`: a two-tower model as CLIP, with projections that no published BLIP checkpoint contains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.outputs import BlipOutput, OutputTuple
from openblip.keras.backend import Tensor, keras, ops
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.encoders import TFBlipTextModel, TFBlipVisionModel
from openblip.keras.layers import dense


@keras.saving.register_keras_serializable("openblip")
class TFBlipModel(TFBlipPreTrainedModel):
    """An image and a text encoder with projections. For trained embeddings, use `TFBlipForImageTextRetrieval`.

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    task = "two_tower"
    weight_names: ClassVar[Mapping[str, str]] = {
        "vision_model.model": "vision",
        "text_model.model": "text",
        "visual_projection": "visual_projection",
        "text_projection": "text_projection",
        "logit_scale": "logit_scale",
    }
    config: BlipConfig

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        config, std = self.config, self.config.initializer_range
        self.vision_model = TFBlipVisionModel(config.vision_config)
        self.text_model = TFBlipTextModel(config.text_config)
        self.visual_projection = dense(config.vision_config.hidden_size, config.projection_dim, std=std, bias=False)
        self.text_projection = dense(config.text_config.hidden_size, config.projection_dim, std=std, bias=False)
        initial = keras.initializers.Constant(config.logit_scale_init_value)
        self.logit_scale = self.add_weight((), initial, name="logit_scale")

    def call(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> BlipOutput | OutputTuple:
        """Compare all images with all texts.

        Args:
            input_ids: Token ids (B, T).
            pixel_values: Normalized images (B, 3, S, S).
            attention_mask: 1 for real tokens (B, T).
            position_ids: Positions (B, T).
            return_loss: Return the contrastive loss (1,), where image and text i are a pair.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
            return_dict: Return an output object rather than a tuple.
            training: Whether the model is trained.

        Returns:
            Cosine similarities times the logit scale, and normalized embeddings (B, E).
        """
        options = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": True,
            "training": training,
        }
        vision = self.vision_model(pixel_values=pixel_values, **options)
        text = self.text_model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)
        image_embeds = normalize(self.visual_projection(vision.pooler_output))
        text_embeds = normalize(self.text_projection(text.pooler_output))
        logits_per_text = ops.matmul(text_embeds, ops.transpose(image_embeds)) * ops.exp(self.logit_scale)
        logits_per_image = ops.transpose(logits_per_text)
        loss = None
        if return_loss:
            loss = ops.reshape((_pair_loss(logits_per_text) + _pair_loss(logits_per_image)) / 2, (1,))
        output = BlipOutput(
            loss=loss,
            logits_per_image=logits_per_image,
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
        return_dict: bool | None = None,
    ) -> Tensor:
        """Return the projected embeddings of texts, not normalized.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T).
            position_ids: Positions (B, T).
            return_dict: Ignored, as in `transformers`.

        Returns:
            Embeddings (B, E).
        """
        text = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True
        )
        return self.text_projection(text.pooler_output)

    def get_image_features(self, pixel_values: Tensor | None = None, return_dict: bool | None = None) -> Tensor:
        """Return the projected embeddings of images, not normalized.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            return_dict: Ignored, as in `transformers`.

        Returns:
            Embeddings (B, E).
        """
        return self.visual_projection(self.vision_model(pixel_values=pixel_values, return_dict=True).pooler_output)


def normalize(x: Tensor) -> Tensor:
    """Return vectors of length 1.

    Args:
        x: Vectors (B, E).

    Returns:
        The vectors, divided by their lengths.
    """
    return x / ops.maximum(ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)), 1e-12)


def _pair_loss(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of the diagonal (B, B)."""
    targets = ops.arange(ops.shape(logits)[0], dtype="int32")
    return ops.mean(ops.sparse_categorical_crossentropy(targets, logits, from_logits=True))
