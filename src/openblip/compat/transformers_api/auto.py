"""`register_with_transformers`: the `Auto` classes and pipelines of `transformers` use our classes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from openblip.compat.transformers_api.answering import BlipForQuestionAnswering
from openblip.compat.transformers_api.base import PreTrainedModel
from openblip.compat.transformers_api.captioning import BlipForConditionalGeneration
from openblip.compat.transformers_api.config import BlipConfig, BlipTextConfig, BlipVisionConfig
from openblip.compat.transformers_api.processing import BlipProcessor
from openblip.compat.transformers_api.registration import join_transformers
from openblip.compat.transformers_api.two_tower import BlipModel


def register_with_transformers() -> None:
    """Make the `Auto` classes and pipelines of `transformers` use OpenBLIP for BLIP models.

    Afterwards `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`, `AutoModelForVisualQuestionAnswering`,
    `AutoProcessor` and `pipeline("image-text-to-text", ...)` load BLIP checkpoints as our classes, in this process.

    Raises:
        ImportError: `transformers` is not installed.
    """
    transformers: Any = import_module("transformers")
    import_module("transformers.modeling_utils")
    join_transformers(PreTrainedModel)
    for config in (BlipConfig, BlipTextConfig, BlipVisionConfig):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    transformers.AutoModel.register(BlipConfig, BlipModel, exist_ok=True)
    transformers.AutoModelForImageTextToText.register(BlipConfig, BlipForConditionalGeneration, exist_ok=True)
    transformers.AutoModelForVisualQuestionAnswering.register(BlipConfig, BlipForQuestionAnswering, exist_ok=True)
    transformers.AutoProcessor.register(BlipConfig, BlipProcessor, exist_ok=True)
    # The class name in a processor's files would find the class of transformers first.
    import_module("transformers.models.auto.processing_auto").PROCESSOR_MAPPING_NAMES.pop("blip", None)
