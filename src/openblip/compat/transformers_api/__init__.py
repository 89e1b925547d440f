"""Drop-in classes for the BLIP models of `transformers`: the same names, arguments, tensors and outputs.

Results of one item equal version 5.23 token for token, and arguments of 4.x are accepted, too. Each difference has a
name, a test, and a row in `docs/differences.md`. `transformers` is not required.

Names are imported when first used: configurations, processors and generation options need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.compat.transformers_api.answering import BlipForQuestionAnswering as BlipForQuestionAnswering
    from openblip.compat.transformers_api.auto import register_with_transformers as register_with_transformers
    from openblip.compat.transformers_api.captioning import BlipForConditionalGeneration as BlipForConditionalGeneration
    from openblip.compat.transformers_api.config import BlipConfig as BlipConfig
    from openblip.compat.transformers_api.config import BlipTextConfig as BlipTextConfig
    from openblip.compat.transformers_api.config import BlipVisionConfig as BlipVisionConfig
    from openblip.compat.transformers_api.features import BatchFeature as BatchFeature
    from openblip.compat.transformers_api.images import BlipImageProcessor as BlipImageProcessor
    from openblip.compat.transformers_api.images import BlipImageProcessorFast as BlipImageProcessorFast
    from openblip.compat.transformers_api.matching import BlipForImageTextRetrieval as BlipForImageTextRetrieval
    from openblip.compat.transformers_api.options import GenerationConfig as GenerationConfig
    from openblip.compat.transformers_api.processing import BlipProcessor as BlipProcessor
    from openblip.compat.transformers_api.text import BlipTextLMHeadModel as BlipTextLMHeadModel
    from openblip.compat.transformers_api.text import BlipTextModel as BlipTextModel
    from openblip.compat.transformers_api.text import BlipTextPreTrainedModel as BlipTextPreTrainedModel
    from openblip.compat.transformers_api.tokens import BlipTokenizer as BlipTokenizer
    from openblip.compat.transformers_api.two_tower import BlipModel as BlipModel
    from openblip.compat.transformers_api.vision import BlipPreTrainedModel as BlipPreTrainedModel
    from openblip.compat.transformers_api.vision import BlipVisionModel as BlipVisionModel

_HOMES = {
    "register_with_transformers": "auto",
    "BlipTextPreTrainedModel": "text",
    "BlipPreTrainedModel": "vision",
    "BlipImageProcessorFast": "images",
    "BlipForQuestionAnswering": "answering",
    "BlipForConditionalGeneration": "captioning",
    "BlipConfig": "config",
    "BlipTextConfig": "config",
    "BlipVisionConfig": "config",
    "BatchFeature": "features",
    "GenerationConfig": "options",
    "BlipImageProcessor": "images",
    "BlipForImageTextRetrieval": "matching",
    "BlipProcessor": "processing",
    "BlipTextLMHeadModel": "text",
    "BlipTextModel": "text",
    "BlipTokenizer": "tokens",
    "BlipModel": "two_tower",
    "BlipVisionModel": "vision",
}

__all__ = [
    "BatchFeature",
    "BlipConfig",
    "BlipForConditionalGeneration",
    "BlipForImageTextRetrieval",
    "BlipForQuestionAnswering",
    "BlipImageProcessor",
    "BlipImageProcessorFast",
    "BlipModel",
    "BlipPreTrainedModel",
    "BlipProcessor",
    "BlipTextConfig",
    "BlipTextLMHeadModel",
    "BlipTextModel",
    "BlipTextPreTrainedModel",
    "BlipTokenizer",
    "BlipVisionConfig",
    "BlipVisionModel",
    "GenerationConfig",
    "register_with_transformers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
