"""Drop-in classes for the BLIP models of `transformers`: the same names, arguments, tensors and outputs.

Results of one item equal version 5.23 token for token, and arguments of 4.x are accepted, too. Each difference has a
name, a test, and a row in `docs/differences.md`. `transformers` is not required.
"""

from __future__ import annotations

from openblip.compat.transformers_api.answering import BlipForQuestionAnswering
from openblip.compat.transformers_api.captioning import BlipForConditionalGeneration
from openblip.compat.transformers_api.config import BlipConfig, BlipTextConfig, BlipVisionConfig
from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.generation import GenerationConfig
from openblip.compat.transformers_api.images import BlipImageProcessor
from openblip.compat.transformers_api.matching import BlipForImageTextRetrieval
from openblip.compat.transformers_api.processing import BlipProcessor
from openblip.compat.transformers_api.text import BlipTextLMHeadModel, BlipTextModel
from openblip.compat.transformers_api.tokens import BlipTokenizer
from openblip.compat.transformers_api.two_tower import BlipModel
from openblip.compat.transformers_api.vision import BlipVisionModel

__all__ = [
    "BatchFeature",
    "BlipConfig",
    "BlipForConditionalGeneration",
    "BlipForImageTextRetrieval",
    "BlipForQuestionAnswering",
    "BlipImageProcessor",
    "BlipModel",
    "BlipProcessor",
    "BlipTextConfig",
    "BlipTextLMHeadModel",
    "BlipTextModel",
    "BlipTokenizer",
    "BlipVisionConfig",
    "BlipVisionModel",
    "GenerationConfig",
]
