"""Drop-in API for the BLIP models of `mmpretrain`: the same functions, inputs and result fields.

Results of one item equal version 1.2; each difference has a name, a test, and a row in `docs/differences.md`.
`mmpretrain`, `mmcv` and `mmengine` are not required.
"""

from __future__ import annotations

from openblip.compat.mmpretrain_api.base import DataSample
from openblip.compat.mmpretrain_api.features import FeatureExtractor
from openblip.compat.mmpretrain_api.inference import inference_model
from openblip.compat.mmpretrain_api.inferencers import (
    ImageCaptionInferencer,
    NLVRInferencer,
    VisualGroundingInferencer,
    VisualQuestionAnsweringInferencer,
)
from openblip.compat.mmpretrain_api.models import Model, ModelHub, get_model, init_model, list_models
from openblip.compat.mmpretrain_api.retrieval import ImageToTextRetrievalInferencer, TextToImageRetrievalInferencer

__all__ = [
    "DataSample",
    "FeatureExtractor",
    "ImageCaptionInferencer",
    "ImageToTextRetrievalInferencer",
    "Model",
    "ModelHub",
    "NLVRInferencer",
    "TextToImageRetrievalInferencer",
    "VisualGroundingInferencer",
    "VisualQuestionAnsweringInferencer",
    "get_model",
    "inference_model",
    "init_model",
    "list_models",
]
