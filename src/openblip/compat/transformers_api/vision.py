"""`BlipVisionModel`: the image encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_v4_order, select_states, strip_prefix
from openblip.compat.transformers_api.config import BlipVisionConfig
from openblip.compat.transformers_api.naming import HubPart
from openblip.compat.transformers_api.outputs import BaseModelOutputWithPooling, OutputTuple
from openblip.errors import InputError
from openblip.model.layers import Trace
from openblip.model.vision import VisionTransformer


class BlipVisionModel(HubPart, PreTrainedModel):
    """The image encoder; `self.model` is OpenBLIP's vision transformer.

    Args:
        config: Sizes of the encoder.
    """

    config_class = BlipVisionConfig
    task = "vision"
    main_input_name = "pixel_values"
    model: VisionTransformer

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__("vision")
        self.config = config
        self.model = VisionTransformer(config.to_model_config())

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
    ) -> BaseModelOutputWithPooling | OutputTuple:
        """Encode images. As in `transformers`, the pooled [CLS] state is normalized a second time.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            interpolate_pos_encoding: Accept other image sizes than the configuration's.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states: `True`, or indices of layers.
            return_dict: Return an output object rather than a tuple.

        Returns:
            States (B, N + 1, D) of N patches, and the pooled state (B, D).

        Raises:
            InputError: `pixel_values` is missing or of another size.
        """
        if pixel_values is None:
            raise InputError("pixel_values must be given")
        attentions = self._option(output_attentions, "output_attentions")
        hidden = self._option(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden is not False else None
        states = self.model(pixel_values, any_size=interpolate_pos_encoding, trace=trace)
        output = BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.model.norm(states[:, 0]),
            hidden_states=select_states(trace.hidden, hidden) if trace else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
        )
        return self._finish(output, return_dict)

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding.

        Returns:
            The patch embedding.
        """
        return self.model.patch_embed

    @classmethod
    def _select_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the image encoder's tensors of a full model, or all tensors of an image encoder."""
        return strip_prefix(tensors, "vision_model.") or tensors
