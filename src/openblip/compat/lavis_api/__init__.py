"""Drop-in API for the BLIP models of LAVIS: the same classes, functions and tensors.

Results of one item equal version 1.0.2; each difference has a name, a test, and a row in `docs/differences.md`. `lavis`
is not required. This module contains the names of `lavis.models` and `lavis.processors`, `compute_gradcam` and
`getAttMap`.
"""

from __future__ import annotations

from openblip.compat.lavis_api.gradcam import compute_gradcam, getAttMap
from openblip.compat.lavis_api.models import (
    BlipCaption,
    BlipFeatureExtractor,
    BlipITM,
    BlipNLVR,
    BlipOutput,
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
from openblip.compat.lavis_api.zoo import (
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    model_zoo,
    registry,
)

__all__ = [
    "BlipCaption",
    "BlipCaptionProcessor",
    "BlipFeatureExtractor",
    "BlipITM",
    "BlipImageEvalProcessor",
    "BlipImageTrainProcessor",
    "BlipNLVR",
    "BlipOutput",
    "BlipOutputFeatures",
    "BlipPretrain",
    "BlipQuestionProcessor",
    "BlipRetrieval",
    "BlipVQA",
    "compute_gradcam",
    "getAttMap",
    "load_model",
    "load_model_and_preprocess",
    "load_preprocess",
    "load_processor",
    "model_zoo",
    "registry",
]
