"""`BlipVisionModel`: the image encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openblip.compat.transformers_api.base import (
    PreTrainedModel,
    accepts_v4_order,
    check_arguments,
    select_states,
    strip_prefix,
)
from openblip.compat.transformers_api.config import BlipConfig, BlipVisionConfig, PreTrainedConfig
from openblip.compat.transformers_api.outputs import BaseModelOutputWithPooling, OutputTuple
from openblip.compat.transformers_api.vision_layers import BlipEncoder, BlipVisionEmbeddings
from openblip.errors import InputError
from openblip.model.layers import Trace
from openblip.model.packing import packing_of

_STD = 0.02  # of new weights, as in the paper's code


class BlipPreTrainedModel(PreTrainedModel):
    """Base class of the models with an image encoder."""

    config_class: ClassVar[type[PreTrainedConfig]] = BlipConfig
    base_model_prefix = "blip"
    input_modalities: ClassVar[tuple[str, ...]] = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["BlipEncoderLayer", "BlipTextEmbeddings"]


class BlipVisionModel(BlipPreTrainedModel):
    """The image encoder.

    Args:
        config: Sizes of the encoder.
    """

    config_class = BlipVisionConfig
    task = "vision"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    config: BlipVisionConfig

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__(config)
        config.to_model_config()  # raises if there is no such encoder
        self.embeddings = BlipVisionEmbeddings(config)
        self.encoder = BlipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @accepts_v4_order(
        "pixel_values", "output_attentions", "output_hidden_states", "return_dict", "interpolate_pos_encoding"
    )
    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | OutputTuple:
        """Encode images. As in `transformers`, the pooled [CLS] state is normalized a second time.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.
            **kwargs: `num_items_in_batch`, which is ignored.

        Returns:
            States (B, N + 1, D) of N patches, and the pooled state (B, D).

        Raises:
            InputError: `pixel_values` is missing or of another size.
        """
        check_arguments(self, kwargs)
        if pixel_values is None:
            raise InputError("pixel_values must be given")
        attentions = self._option(output_attentions, "output_attentions")
        hidden = self._option(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden is not False else None
        with packing_of(self).active(self):
            embedded = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            encoded = self.encoder(inputs_embeds=embedded, **({} if trace is None else {"trace": trace}))
        states = self.post_layernorm(encoded.last_hidden_state)
        output = BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.post_layernorm(states[:, 0]),
            hidden_states=select_states(trace.hidden, hidden) if trace else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
        )
        return self._finish(output, return_dict)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of patches.

        Returns:
            The embeddings of patches.
        """
        return self.embeddings

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module as in the paper's code; `transformers` uses a standard deviation of 1e-10."""
        if isinstance(module, BlipVisionEmbeddings) and not module.class_embedding.is_meta:
            nn.init.trunc_normal_(module.class_embedding, std=_STD)
            nn.init.trunc_normal_(module.position_embedding, std=_STD)
            return
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            nn.init.trunc_normal_(module.weight, std=_STD)

    @classmethod
    def _select_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the image encoder's tensors of a full model, or all tensors of an image encoder."""
        return strip_prefix(tensors, "vision_model.") or tensors

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Pixels to try the model with."""
        side = self.config.image_size
        return {"pixel_values": torch.zeros(1, 3, side, side)}
