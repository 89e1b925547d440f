"""BLIP for TensorFlow and JAX: the `TFBlip` classes of transformers 4, written once in Keras 3.

`KERAS_BACKEND` chooses "tensorflow" (the default) or "jax" before Python starts. Configurations, processors, options of
`generate` and hub folders are the same as for the PyTorch classes; PyTorch itself is neither needed nor imported.
"""

from __future__ import annotations

from openblip.compat.transformers_api.config import BlipConfig, BlipTextConfig, BlipVisionConfig
from openblip.compat.transformers_api.images import BlipImageProcessor
from openblip.compat.transformers_api.options import GenerationConfig
from openblip.compat.transformers_api.processing import BlipProcessor
from openblip.keras.answering import TFBlipForQuestionAnswering
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.captioning import TFBlipForConditionalGeneration
from openblip.keras.encoders import TFBlipTextModel, TFBlipVisionModel
from openblip.keras.export import export_saved_model
from openblip.keras.litert import export_litert
from openblip.keras.matching import TFBlipForImageTextRetrieval
from openblip.keras.two_tower import TFBlipModel

__all__ = [
    "BlipConfig",
    "BlipImageProcessor",
    "BlipProcessor",
    "BlipTextConfig",
    "BlipVisionConfig",
    "GenerationConfig",
    "TFBlipForConditionalGeneration",
    "TFBlipForImageTextRetrieval",
    "TFBlipForQuestionAnswering",
    "TFBlipModel",
    "TFBlipPreTrainedModel",
    "TFBlipTextModel",
    "TFBlipVisionModel",
    "export_litert",
    "export_saved_model",
]
