"""What each task adds to a run: how its batches are made, what it optimises, what an objective is told at each step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from openblip.data.augment import RandAugment, TrainTransform
from openblip.data.boxes import ColorJitter, GroundingTransform, PlainBoxes
from openblip.data.collate import normalised
from openblip.data.loader import Loader
from openblip.data.sources import open_source
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.combined import RotatingSource
from openblip.data.tasks import (
    AnsweringTask,
    CaptioningTask,
    ComparingTask,
    DialogTask,
    GroundingTask,
    Plain,
    PretrainingTask,
    RetrievalTask,
    Task,
)
from openblip.errors import ConfigError
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.training.config import AugmentSettings, DataSettings, Name, PretrainLoss, Recipe, RetrievalLoss
from openblip.training.distributed import Place
from openblip.training.loop import Arguments, Progress
from openblip.training.objectives.answering import Answering, AnsweringBatch
from openblip.training.objectives.captioning import Captioning, CaptioningBatch
from openblip.training.objectives.comparing import Comparing, ComparingBatch
from openblip.training.objectives.dialogs import DialogBatch, Dialogs
from openblip.training.objectives.gathering import Gather
from openblip.training.objectives.grounding import Grounding, GroundingBatch
from openblip.training.objectives.pretraining import Pretraining, PretrainingBatch
from openblip.training.objectives.retrieval import Retrieval, RetrievalBatch


@dataclass(frozen=True)
class Parts:
    """What a task is made of; ``texts`` names the option of its data task that DataSettings.texts sets."""

    data: Callable[..., Task]
    texts: str | None
    batch: Callable[..., Any]
    objective: Callable[..., nn.Module]
    gathers: bool = False
    some_unused: bool = False


PARTS: Mapping[Name, Parts] = {
    "pretrain": Parts(PretrainingTask, "captions", PretrainingBatch, Pretraining, gathers=True),
    "caption": Parts(CaptioningTask, "captions", CaptioningBatch, Captioning, gathers=True),
    "vqa": Parts(AnsweringTask, "questions", AnsweringBatch, Answering),
    "retrieval": Parts(RetrievalTask, "captions", RetrievalBatch, Retrieval, gathers=True),
    "nlvr": Parts(ComparingTask, None, ComparingBatch, Comparing),
    # The text encoder of grounding has cross-attention that it never uses.
    "grounding": Parts(GroundingTask, "refs", GroundingBatch, Grounding, some_unused=True),
    # Dialogs need no projections to the ITC space.
    "visdial": Parts(DialogTask, None, DialogBatch, Dialogs, some_unused=True),
}


# --- batches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jittered:
    """Colour jitter before another transform."""

    jitter: ColorJitter
    then: Callable[[Image.Image, random.Random], NDArray[np.uint8]]

    def __call__(self, image: Image.Image, rng: random.Random) -> NDArray[np.uint8]:
        """Pixels (S, S, 3)."""
        return self.then(self.jitter(image, rng), rng)


def data_task(recipe: Recipe, tokenizer: Tokenizer, image: ImageSettings, prompt: str | None, *, train: bool) -> Task:
    """How samples are made of records, for training or, with nothing drawn, for evaluation."""
    data, parts = recipe.data, PARTS[recipe.task]
    options: dict[str, Any] = {"tokenizer": tokenizer}
    options["transform"] = _transform(recipe.task, recipe.augment, image) if train else _plain(recipe.task, image)
    for name in ("max_words", "max_tokens"):
        if (limit := getattr(data, name)) is not None:
            options[name] = limit
    if recipe.task in ("grounding", "visdial") and data.max_words is not None:
        raise ConfigError(f"data.max_words does not go with {recipe.task}, whose texts are not cut by words")
    if train and data.texts is not None:
        if parts.texts is None:
            raise ConfigError(f"data.texts does not go with {recipe.task}: leave it out")
        options[parts.texts] = data.texts
    if recipe.task == "caption":
        options["prompt"] = prompt or ""
    if recipe.task == "vqa":
        options["vg_weight"] = data.vg_weight
    if recipe.task == "nlvr":
        options["swap"] = train
    if recipe.task == "visdial":
        options["draw"] = train
    if recipe.task == "grounding" and train:
        options["mirror"] = recipe.augment.mirror
    return parts.data(**options)


def _transform(name: Name, augment: AugmentSettings, image: ImageSettings) -> Callable[..., Any]:
    strength = augment.jitter
    jitter = ColorJitter(strength, strength, strength, strength / 4) if strength > 0 else None
    if name == "grounding":
        return GroundingTransform(size=image.size, jitter=jitter)
    changes = RandAugment() if augment.randaugment else None
    transform = TrainTransform(image, min_scale=augment.min_scale, flip=augment.flip, randaugment=changes)
    return Jittered(jitter, transform) if jitter else transform


def _plain(name: Name, image: ImageSettings) -> Callable[..., Any]:
    return PlainBoxes(size=image.size) if name == "grounding" else Plain(image.size)


def open_train(data: DataSettings) -> Source | Stream:
    """The training data; :class:`ConfigError` if there is none."""
    if not data.train and not data.rotate:
        raise ConfigError("there is nothing to train on: give data.train")
    always = _open(data, data.train, data.split) if data.train else None
    if not data.rotate:
        return cast("Source | Stream", always)
    turns = [_open(data, (place,), data.split) for place in data.rotate]
    parts = [*turns, *([always] if always else [])]
    if not all(isinstance(part, Source) for part in parts):
        raise ConfigError(
            "data.rotate takes data that can be had by number: stream=false, or let the streams rotate themselves"
        )
    return RotatingSource(cast("list[Source]", turns), [cast(Source, always)] if always else [])


def open_val(data: DataSettings) -> Source | Stream | None:
    """The validation data, if there is any."""
    return _open(data, data.val, data.val_split or data.split) if data.val else None


def _open(data: DataSettings, places: Sequence[str], split: str | None) -> Source | Stream:
    return open_source(list(places), images=data.images, columns=data.columns or None, split=split, stream=data.stream)


def train_loader(recipe: Recipe, source: Source | Stream, task: Task, image: ImageSettings, place: Place) -> Loader:
    """Endless, shuffled, augmented; every process has its own share."""
    data = recipe.data
    return Loader(
        source,
        task,
        batch=recipe.batch_size,
        finish=partial(finish, recipe.task, image, place.device),
        seed=recipe.seed,
        rank=place.rank,
        world=place.size,
        workers=data.workers,
        length=data.length,
        window=data.window,
        max_bad=data.max_bad,
        pin=place.device.type == "cuda",
    )


def val_loader(
    recipe: Recipe, source: Source | Stream, task: Task, image: ImageSettings, place: Place, name: Name | None = None
) -> Loader:
    """All samples once, in their order, on one process; ``name`` is the task whose batches are made, if another."""
    return Loader(
        source,
        task,
        batch=recipe.batch_size,
        finish=partial(finish, name or recipe.task, image, place.device),
        shuffle=False,
        full=False,
        workers=min(recipe.data.workers, 2),
        length=recipe.data.length if isinstance(source, Stream) else None,
    )


def finish(name: Name, image: ImageSettings, device: torch.device, tensors: dict[str, Tensor]) -> Any:
    """The objective's batch of the tensors that a loader makes, on the device; pixels are normalised there."""
    return PARTS[name].batch(**normalised(tensors, image, device))


# --- losses -------------------------------------------------------------------------------------------------------


def make_objective(recipe: Recipe, model: nn.Module, task: Task, gather: Gather) -> nn.Module:
    """What the run optimises."""
    parts, options = PARTS[recipe.task], _options(recipe)
    if isinstance(task, CaptioningTask):
        options["prompt_length"] = task.prompt_length
    if parts.gathers:
        options["gather"] = gather
    return parts.objective(model, **options)


def _options(recipe: Recipe) -> dict[str, Any]:
    told_at_each_step = ("alpha", "alpha_epochs")
    return {name: value for name, value in vars(recipe.loss).items() if name not in told_at_each_step}


def step_arguments(recipe: Recipe) -> Arguments | None:
    """The alpha of ITC, which rises from 0 in a straight line over the first epochs; nothing for other tasks."""
    loss = recipe.loss
    if not isinstance(loss, PretrainLoss | RetrievalLoss):
        return None

    def alpha(progress: Progress, steps_per_epoch: int) -> dict[str, float]:
        done = progress.epoch * steps_per_epoch + progress.batch
        return {"alpha": loss.alpha * min(1.0, done / max(loss.alpha_epochs * steps_per_epoch, 1))}

    return alpha
