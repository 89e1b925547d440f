"""`inference_model`: inference in one call, for a model of any task."""

from __future__ import annotations

import warnings
from inspect import signature
from pathlib import Path
from typing import Any

from openblip.compat.mmpretrain_api.base import BaseInferencer, Result
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


def inference_model(model: str | Path | Model, *args: Any, **kwargs: Any) -> Result:
    """Return the result for the first input, from the inferencer of the model's task.

    Retrieval models have two inferencers. The first input decides: a text retrieves images, an image retrieves texts.

    Args:
        model: Published name, path or model.
        *args: Inputs of the inferencer.
        **kwargs: Arguments of the inferencer's constructor (`prototype`, `device`, ...) or call.

    Returns:
        The result for the first input, from the inferencer of the model's task.

    Raises:
        UnsupportedTaskError: If there is no inferencer for the model.
        InputError: If the model has several tasks, or an input does not fit.
    """
    if not isinstance(model, Model):
        model = get_model(model, kwargs.pop("pretrained", True), kwargs.pop("device", None))
    inferencer_class = _choose_inferencer(model, args)
    parameters = signature(inferencer_class).parameters
    constructor_kwargs = {name: kwargs.pop(name) for name in list(kwargs) if name in parameters}
    inferencer: Any = inferencer_class(model, **constructor_kwargs)
    result: Result = inferencer(*args, **kwargs)[0]
    return result


def _choose_inferencer(model: Model, args: tuple[Any, ...]) -> type[BaseInferencer]:
    candidates = [inferencer for inferencer in INFERENCERS if TASKS[inferencer.task] in model.blip.tasks]
    names = ", ".join(inferencer.__name__ for inferencer in candidates)
    if not candidates:
        raise UnsupportedTaskError(f"there is no inferencer for {model.name} ({', '.join(model.blip.tasks)})")
    if len({TASKS[inferencer.task] for inferencer in candidates}) > 1:
        raise InputError(f"{model.name} has several tasks: create one of {names}")
    if len(candidates) == 1:
        return candidates[0]
    query = args[0] if args else None
    if isinstance(query, list | tuple) and query:
        query = query[0]
    is_text = isinstance(query, str) and "://" not in query and not Path(query).exists()
    chosen = TextToImageRetrievalInferencer if is_text else ImageToTextRetrievalInferencer
    warnings.warn(f"the model has two tasks: using {chosen.__name__} of {names}", stacklevel=3)
    return chosen
