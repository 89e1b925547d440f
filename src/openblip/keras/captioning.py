"""`TFBlipForConditionalGeneration`: image captioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from openblip.compat.transformers_api.config import BlipConfig
from openblip.compat.transformers_api.options import GenerationConfig, caption_prompts
from openblip.compat.transformers_api.outputs import (
    BlipForConditionalGenerationModelOutput,
    GenerateOutput,
    OutputTuple,
)
from openblip.keras.backend import Tensor, keras, ops
from openblip.keras.encoders import TFBlipTextLMHeadModel, TFBlipVisionModel
from openblip.keras.generation import GeneratingModel, to_rows
from openblip.keras.text import Memory


@keras.saving.register_keras_serializable("openblip")
class TFBlipForConditionalGeneration(GeneratingModel):
    """An image encoder (`vision_model`) and an image-grounded text decoder (`text_decoder`).

    Args:
        config: Sizes of the model.
    """

    config_class = BlipConfig
    task = "caption"
    weight_names: ClassVar[Mapping[str, str]] = {
        "vision_model.model": "vision",
        "text_decoder.bert.model": "decoder",
        "text_decoder.head": "lm_head",
    }
    config: BlipConfig

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        self.vision_model = TFBlipVisionModel(self.config.vision_config)
        self.text_decoder = TFBlipTextLMHeadModel(self.config.text_config)

    def call(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> BlipForConditionalGenerationModelOutput | OutputTuple:
        """Compute next-token logits of captions and, with labels, their loss.

        Token ids are used as they are; BLIP was trained with [DEC] as the first token.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            input_ids: Token ids (B, T).
            attention_mask: 1 for real tokens (B, T).
            output_attentions: Return attention weights of the image encoder.
            output_hidden_states: Return hidden states of the image encoder.
            labels: Token ids (B, T) to predict from the tokens before them; -100 is ignored, padding is not.
            return_dict: Return an output object rather than a tuple.
            training: Whether the model is trained.

        Returns:
            Logits (B, T, V), image states, and the loss (1,) with labels.
        """
        vision = self.vision_model(
            pixel_values=pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        text = self.text_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=vision.last_hidden_state,
            labels=labels,
            use_cache=False,
            return_dict=True,
            training=training,
        )
        output = BlipForConditionalGenerationModelOutput(
            loss=None if text.loss is None else ops.reshape(text.loss, (1,)),
            logits=text.logits,
            image_embeds=vision.last_hidden_state,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )
        return self._finish(output, return_dict)

    def encode(self, pixel_values: Tensor) -> Memory:
        """Return the memory of the decoder: the keys and values of images.

        Args:
            pixel_values: Normalized images (B, 3, S, S).

        Returns:
            The keys and values of the images.
        """
        return self.text_decoder.bert.model.project(self.vision_model.model(pixel_values))

    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | list[list[int]] | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        jit_compile: bool | None = None,
        **generate_kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Generate captions, by default greedily with at most 20 new tokens.

        Captions start with [DEC]. The first token of a prompt is replaced by [DEC], and its last token, expected to be
        [SEP], is removed. In a batch of prompts of different lengths, results do not depend on the other rows.

        Args:
            pixel_values: Normalized images (B, 3, S, S).
            input_ids: Token ids (B, T) of prompts.
            attention_mask: 1 for real tokens (B, T).
            generation_config: Options that override the model's own.
            seed: Seed of samples, which then depend on their own image only; `None` for NumPy's global generator.
            jit_compile: Compile by XLA. The default is the back end's: JAX does, TensorFlow does not.
            **generate_kwargs: Options that override `generation_config`.

        Returns:
            Token ids that start with the prompts, or an output object with `return_dict_in_generate=True`.

        Raises:
            InputError: An option or an input is invalid or not supported.
        """
        memory = self.compiled_function("encode", self.encode, jit_compile)(ops.convert_to_tensor(pixel_values))
        ids = None if input_ids is None else to_rows(input_ids)
        masks = None if attention_mask is None else to_rows(attention_mask)
        prompts, masks = caption_prompts(ids, masks, memory.layers[0][0].shape[0], self.config.text_config)
        return self.continue_rows(prompts, masks, memory, generation_config, generate_kwargs, seed, jit_compile)
