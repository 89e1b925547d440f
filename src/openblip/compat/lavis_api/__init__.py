"""The entry points of LAVIS for BLIP, over our models: thin names, the same tensors in and out.

They do with one item what version 1.0.2 does; each difference has a name, a test, and a line in
``docs/differences.md``. ``lavis`` itself is not needed. ``from lavis.models import ...``, ``from lavis.processors
import ...``, ``compute_gradcam`` and ``getAttMap`` are all found here.
"""

from __future__ import annotations

from openblip.compat.lavis_api.gradcam import compute_gradcam, getAttMap
from openblip.compat.lavis_api.models import (
    BlipCaption,
    BlipFeatureExtractor,
    BlipITM,
    BlipNLVR,
    BlipOutputFeatures,
    BlipPretrain,
    BlipRetrieval,
    BlipVQA,
)
from openblip.compat.lavis_api.processors import (
    BlipCaptionProcessor,
    BlipImageEvalProcessor,
    BlipImageTrainProcessor,
    BlipQuestionProcessor,
    load_processor,
)
from openblip.compat.lavis_api.zoo import load_model, load_model_and_preprocess, model_zoo

__all__ = [
    "BlipCaption",
    "BlipCaptionProcessor",
    "BlipFeatureExtractor",
    "BlipITM",
    "BlipImageEvalProcessor",
    "BlipImageTrainProcessor",
    "BlipNLVR",
    "BlipOutputFeatures",
    "BlipPretrain",
    "BlipQuestionProcessor",
    "BlipRetrieval",
    "BlipVQA",
    "compute_gradcam",
    "getAttMap",
    "load_model",
    "load_model_and_preprocess",
    "load_processor",
    "model_zoo",
]
