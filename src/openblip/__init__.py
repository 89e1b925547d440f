"""OpenBLIP: BLIP (Li et al. 2022) in full.

>>> import openblip
>>> blip = openblip.load("pocket")  # doctest: +SKIP
>>> blip.caption("photo.jpg").text  # doctest: +SKIP

Names are imported when first used, so that ``import openblip`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from openblip._version import __version__

if TYPE_CHECKING:
    from openblip.blip import Blip as Blip
    from openblip.blip import load as load
    from openblip.compat.transformers_api import BlipConfig as BlipConfig
    from openblip.compat.transformers_api import BlipForConditionalGeneration as BlipForConditionalGeneration
    from openblip.compat.transformers_api import BlipForImageTextRetrieval as BlipForImageTextRetrieval
    from openblip.compat.transformers_api import BlipForQuestionAnswering as BlipForQuestionAnswering
    from openblip.compat.transformers_api import BlipImageProcessor as BlipImageProcessor
    from openblip.compat.transformers_api import BlipImageProcessorFast as BlipImageProcessorFast
    from openblip.compat.transformers_api import BlipModel as BlipModel
    from openblip.compat.transformers_api import BlipPreTrainedModel as BlipPreTrainedModel
    from openblip.compat.transformers_api import BlipProcessor as BlipProcessor
    from openblip.compat.transformers_api import BlipTextConfig as BlipTextConfig
    from openblip.compat.transformers_api import BlipTextLMHeadModel as BlipTextLMHeadModel
    from openblip.compat.transformers_api import BlipTextModel as BlipTextModel
    from openblip.compat.transformers_api import BlipTextPreTrainedModel as BlipTextPreTrainedModel
    from openblip.compat.transformers_api import BlipVisionConfig as BlipVisionConfig
    from openblip.compat.transformers_api import BlipVisionModel as BlipVisionModel
    from openblip.compat.transformers_api import register_with_transformers as register_with_transformers
    from openblip.errors import CheckpointError as CheckpointError
    from openblip.errors import ConfigError as ConfigError
    from openblip.errors import DownloadError as DownloadError
    from openblip.errors import ImageError as ImageError
    from openblip.errors import InputError as InputError
    from openblip.errors import JobError as JobError
    from openblip.errors import OpenBlipError as OpenBlipError
    from openblip.errors import StoppedError as StoppedError
    from openblip.errors import TimeLimitError as TimeLimitError
    from openblip.errors import UnsupportedTaskError as UnsupportedTaskError
    from openblip.errors import VideoError as VideoError
    from openblip.keras import TFBlipForConditionalGeneration as TFBlipForConditionalGeneration
    from openblip.keras import TFBlipForImageTextRetrieval as TFBlipForImageTextRetrieval
    from openblip.keras import TFBlipForQuestionAnswering as TFBlipForQuestionAnswering
    from openblip.keras import TFBlipModel as TFBlipModel
    from openblip.keras import TFBlipPreTrainedModel as TFBlipPreTrainedModel
    from openblip.keras import TFBlipTextModel as TFBlipTextModel
    from openblip.keras import TFBlipVisionModel as TFBlipVisionModel
    from openblip.pipelines.inputs import EncodedImage as EncodedImage
    from openblip.pipelines.inputs import ImageInput as ImageInput
    from openblip.preprocess.video import Video as Video
    from openblip.results import Answer as Answer
    from openblip.results import Box as Box
    from openblip.results import Caption as Caption
    from openblip.results import Classification as Classification
    from openblip.results import Comparison as Comparison
    from openblip.results import Explanation as Explanation
    from openblip.results import Label as Label
    from openblip.results import Match as Match
    from openblip.training.fine_tune import train as train

_HOMES = {
    "openblip.blip": ("Blip", "load"),
    "openblip.pipelines.inputs": ("EncodedImage", "ImageInput"),
    "openblip.results": (
        "Answer",
        "Box",
        "Caption",
        "Classification",
        "Comparison",
        "Explanation",
        "Label",
        "Match",
    ),
    "openblip.compat.transformers_api": (
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
        "BlipVisionConfig",
        "BlipVisionModel",
        "register_with_transformers",
    ),
    "openblip.preprocess.video": ("Video",),
    "openblip.training.fine_tune": ("train",),
    "openblip.errors": (
        "CheckpointError",
        "ConfigError",
        "DownloadError",
        "ImageError",
        "InputError",
        "JobError",
        "OpenBlipError",
        "StoppedError",
        "TimeLimitError",
        "UnsupportedTaskError",
        "VideoError",
    ),
}
# Names that need an extra; `from openblip import *` does not import them.
_EXTRAS = {
    "openblip.keras": (
        "TFBlipForConditionalGeneration",
        "TFBlipForImageTextRetrieval",
        "TFBlipForQuestionAnswering",
        "TFBlipModel",
        "TFBlipPreTrainedModel",
        "TFBlipTextModel",
        "TFBlipVisionModel",
    ),
}
_HOME = {name: home for homes in (_HOMES, _EXTRAS) for home, names in homes.items() for name in names}

__all__ = ["__version__", *sorted(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'openblip' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOME})
