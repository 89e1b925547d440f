"""The entry points of LAVIS for BLIP, over our models: thin names, the same tensors in and out.

They do with one item what version 1.0.2 does; each difference has a name, a test, and a line in
``docs/differences.md``. ``lavis`` itself is not needed. ``from lavis.models import ...``, ``from lavis.processors
import ...`` and ``compute_gradcam`` are all found here.
"""

from __future__ import annotations

from openblip.compat.lavis_api.gradcam import compute_gradcam
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
from openblip.compat.lavis_api.processors import load_processor
from openblip.compat.lavis_api.zoo import load_model, load_model_and_preprocess, model_zoo

__all__ = [
    "BlipCaption",
    "BlipFeatureExtractor",
    "BlipITM",
    "BlipNLVR",
    "BlipOutputFeatures",
    "BlipPretrain",
    "BlipRetrieval",
    "BlipVQA",
    "compute_gradcam",
    "load_model",
    "load_model_and_preprocess",
    "load_processor",
    "model_zoo",
]
