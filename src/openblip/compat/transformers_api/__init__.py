"""The classes of ``transformers`` for BLIP, over our models: thin names, the same tensors, the same outputs.

They do with one item what version 5.23 does, token for token, and take the arguments of 4.x too; each difference has a
name, a test, and a line in ``docs/differences.md``. ``transformers`` itself is not needed.
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
