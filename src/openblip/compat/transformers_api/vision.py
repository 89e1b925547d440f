"""``BlipVisionModel``: the image encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from openblip.compat.transformers_api.base import PreTrainedModel, accepts_order_of_4, chosen_states
from openblip.compat.transformers_api.config import BlipVisionConfig, PreTrainedConfig
from openblip.compat.transformers_api.naming import HubPart
from openblip.compat.transformers_api.outputs import BaseModelOutputWithPooling
from openblip.errors import InputError
from openblip.model.layers import Trace
from openblip.model.vision import VisionTransformer


class BlipVisionModel(HubPart, PreTrainedModel):
    """Pixels (B, 3, S, S) to tokens (B, N + 1, D). ``self.model`` is our vision transformer."""

    config_class = BlipVisionConfig
    task = "vision"
    main_input_name = "pixel_values"
    model: VisionTransformer

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__("vision")
        self.config = config
        self.model = VisionTransformer(config.ours())

    @accepts_order_of_4(
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
    ) -> Any:
        """Tokens after the final norm, and the class token normalised once more, as in that library.

        ``interpolate_pos_encoding`` allows other image sizes; without it they raise :class:`InputError`.
        """
        if pixel_values is None:
            raise InputError("pixel_values are missing")
        attentions = self._asked(output_attentions, "output_attentions")
        hidden = self._asked(output_hidden_states, "output_hidden_states")
        trace = Trace(attention=bool(attentions)) if attentions or hidden is not False else None
        tokens = self.model(pixel_values, any_size=interpolate_pos_encoding, trace=trace)
        output = BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.model.norm(tokens[:, 0]),
            hidden_states=chosen_states(trace.hidden, hidden) if trace else None,
            attentions=tuple(trace.self_weights) if trace and attentions else None,
        )
        return output if self._asked(return_dict, "return_dict") else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.patch_embed

    @classmethod
    def _own_tensors(cls, tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
        """A whole model's folder serves too: its image encoder is taken."""
        inside = {name: tensor for name, tensor in tensors.items() if name.startswith("vision_model.")}
        return {name.removeprefix("vision_model."): tensor for name, tensor in inside.items()} or tensors
