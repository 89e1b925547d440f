"""``inference_model``: one call, whichever task the model is for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from openblip.compat.mmpretrain_api.base import BaseInferencer
from openblip.compat.mmpretrain_api.inferencers import (
    ImageCaptionInferencer,
    NLVRInferencer,
    VisualGroundingInferencer,
    VisualQuestionAnsweringInferencer,
)
from openblip.compat.mmpretrain_api.models import TASKS, Model, get_model
from openblip.compat.mmpretrain_api.retrieval import ImageToTextRetrievalInferencer, TextToImageRetrievalInferencer
from openblip.errors import InputError, UnsupportedTaskError

INFERENCERS: tuple[type[BaseInferencer], ...] = (
    ImageCaptionInferencer,
    VisualQuestionAnsweringInferencer,
    VisualGroundingInferencer,
    NLVRInferencer,
    TextToImageRetrievalInferencer,
    ImageToTextRetrievalInferencer,
)


def inference_model(model: str | Path | Model, *args: Any, **kwargs: Any) -> Any:
    """The result for the first input.

    The inferencer is that of the model's task; keyword arguments build it (``prototype``, ``device`` ...) or call it.
    A retrieval model serves two tasks: the first input decides, an image looks for texts and a text for images.
    """
    made = (
        model
        if isinstance(model, Model)
        else get_model(model, kwargs.pop("pretrained", True), kwargs.pop("device", None))
    )
    inferencer = _inferencer(made, args)
    building = {name: kwargs.pop(name) for name in list(kwargs) if name in signature(inferencer).parameters}
    built: Any = inferencer(made, **building)
    return built(*args, **kwargs)[0]


def _inferencer(model: Model, args: tuple[Any, ...]) -> type[BaseInferencer]:
    fitting = [one for one in INFERENCERS if TASKS[one.task] in model.blip.tasks]
    if not fitting:
        raise UnsupportedTaskError(f"{model.name} serves {', '.join(model.blip.tasks)}: no inferencer is for that")
    if len({TASKS[one.task] for one in fitting}) > 1:
        raise InputError(f"{model.name} serves several tasks: use one of {_names(fitting)} directly")
    if len(fitting) == 1:
        return fitting[0]
    first = args[0][0] if args and isinstance(args[0], list | tuple) and args[0] else args[0] if args else None
    is_text = isinstance(first, str) and "://" not in first and not Path(first).exists()
    chosen = TextToImageRetrievalInferencer if is_text else ImageToTextRetrievalInferencer
    warnings.warn(f"the model serves two tasks: {chosen.__name__} is taken, of {_names(fitting)}", stacklevel=3)
    return chosen


def _names(inferencers: Sequence[type[BaseInferencer]]) -> str:
    return ", ".join(one.__name__ for one in inferencers)
