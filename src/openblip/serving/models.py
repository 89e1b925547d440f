"""The loaded models by name, and the stages that run their pipelines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.blip import Blip
from openblip.engine.protocols import Explanations
from openblip.errors import OpenBlipError
from openblip.pipelines.base import TEXT_ROWS, Pipeline, Prepared
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.preprocess.image import load_image
from openblip.preprocess.limits import BUDGET, DecodeLimits
from openblip.serving.batching import Stage
from openblip.serving.errors import ApiError
from openblip.tasks import TASKS, TaskName

_MAX_STAGES = 128  # recently used stages that a model keeps, with state that depends on their options


class ImageItem:
    """The encoded images of an item, and its text in the form that the pipeline takes.

    Args:
        images: Encoded images: one, or two to compare.
        *texts: The other elements of an item of the pipeline.
    """

    def __init__(self, images: Sequence[bytes], *texts: object) -> None:
        self.images, self.texts = images, texts


class PipelineStage(Stage[ImageItem, "Prepared[Any]", "tuple[Any, tuple[int, int] | None]"]):
    """A stage that runs a pipeline. Each result contains the width and height of its (first) image.

    Args:
        kind: Name in metrics and cost estimates.
        key: Options of the pipeline.
        pipeline: The pipeline.
        limits: Limits of decoding.
    """

    def __init__(self, kind: str, key: Hashable, pipeline: Pipeline[Any, Any, Any, Any], limits: DecodeLimits) -> None:
        self.kind, self.key = kind, key
        self.pipeline, self._limits = pipeline, limits
        self.max_batch = pipeline.model.batching.batch_size

    def prepare(self, item: ImageItem) -> Prepared[Any]:
        """Decode the images within the limits, and prepare the item."""
        target_size = self.pipeline.model.target_size
        with BUDGET.keep():
            # `load_image` gets bytes only, so a text of a request is never opened as a path or an address.
            images = [load_image(bytes(data), target_size=target_size, limits=self._limits) for data in item.images]
            prepared: Prepared[Any] = self.pipeline.preprocess(
                (*images, *item.texts) if item.texts or len(images) > 1 else images[0]
            )
            return prepared

    def shape(self, prepared: Prepared[Any]) -> Hashable:
        """Return the number of texts."""
        return prepared.num_texts

    def run(self, batch: list[Prepared[Any]]) -> list[tuple[Any, tuple[int, int] | None] | OpenBlipError]:
        """Run the model on a batch."""
        results = self.pipeline.postprocess(self.pipeline.forward(batch), batch)
        return [
            result if isinstance(result, OpenBlipError) else (result, prepared.image.size)
            for result, prepared in zip(results, batch, strict=True)
        ]


class TextStage(Stage[str, "list[int]", "NDArray[np.float32]"]):
    """A stage that embeds texts.

    Args:
        kind: Name in metrics and cost estimates.
        pipeline: The retrieval pipeline.
    """

    max_batch = TEXT_ROWS

    def __init__(self, kind: str, pipeline: RetrievalPipeline) -> None:
        self.kind, self.key = kind, (kind, id(pipeline.model))
        self._pipeline = pipeline

    def prepare(self, item: str) -> list[int]:
        """Tokenize a text."""
        return self._pipeline.tokenize([item])[0]

    def run(self, batch: list[list[int]]) -> list[NDArray[np.float32] | OpenBlipError]:
        """Embed the texts of a batch."""
        return list(self._pipeline.embed_texts(batch).cpu().numpy())


class ServedModel:
    """A loaded model.

    Args:
        name: Its public name.
        blip: The model.
        limits: Limits of decoding.
    """

    def __init__(self, name: str, blip: Blip, limits: DecodeLimits) -> None:
        self.name, self.blip, self.decode_limits = name, blip, limits
        self._stages: OrderedDict[Hashable, Stage[Any, Any, Any]] = OrderedDict()

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """The tasks that the model supports."""
        return self.blip.tasks

    def load(self) -> None:
        """Load the weights of every task, so that no request waits for them or causes a download."""
        for task in self.tasks:
            self.blip.pipeline(task)

    def verbs(self) -> list[str]:
        """Return the verbs that the model supports."""
        verbs = [verb for task in self.tasks for verb in TASKS[task].verbs if verb != "explain"]
        explained = [task for task in ("retrieval", "caption", "vqa") if task in self.tasks]
        if any(self.blip.pipeline(task).model.engine.supports(Explanations) for task in explained):
            verbs.append("explain")
        return list(dict.fromkeys(verbs))

    def stage(
        self, kind: str, options: Hashable, make_pipeline: Callable[[], Pipeline[Any, Any, Any, Any]]
    ) -> PipelineStage:
        """Return the stage of a pipeline with these options. Calls with equal options return the same stage.

        Args:
            kind: The verb.
            options: Options of the pipeline.
            make_pipeline: Function that creates the pipeline.

        Raises:
            OpenBlipError: The options are invalid, or the model does not support the task.
        """
        key = (self.name, kind, options)
        stage = self._stages.get(key)
        if stage is None:
            stage = PipelineStage(f"{self.name}/{kind}", key, make_pipeline(), self.decode_limits)
            self._stages[key] = stage
            if len(self._stages) > _MAX_STAGES:
                self._stages.popitem(last=False)
        self._stages.move_to_end(key)
        assert isinstance(stage, PipelineStage)
        return stage


class Models:
    """The models that were loaded at the start. Requests select one by name, and never load another.

    Args:
        blips: Models by name; the first is the default.
        limits: Limits of decoding.
    """

    def __init__(self, blips: Mapping[str, Blip], limits: DecodeLimits) -> None:
        self._models = {name: ServedModel(name, blip, limits) for name, blip in blips.items()}

    def __iter__(self) -> Any:
        return iter(self._models.values())

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return list(self._models)

    @property
    def default(self) -> ServedModel:
        """The first model."""
        return next(iter(self._models.values()))

    def find(self, name: str | None) -> ServedModel:
        """Return a model by name; `None` returns the default.

        Raises:
            ApiError: No loaded model has this name (404).
        """
        if name is None:
            return self.default
        model = self._models.get(name)
        if model is None:
            names = ", ".join(self._models)
            raise ApiError(404, f"model must be one of {names}", param="model", code="model_not_found")
        return model


def public_name(name_or_path: str) -> str:
    """Return the name of a model for clients. A folder or file has the last part of its path as name."""
    path = Path(name_or_path).expanduser()
    return path.resolve().stem if path.is_file() else path.resolve().name if path.exists() else name_or_path
