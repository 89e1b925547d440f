"""The data of a run: sources, data classes and batches on the device, built from a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from openblip.data.collate import normalize_batch
from openblip.data.loader import Loader
from openblip.data.problems import Report
from openblip.data.sources import open_source
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.combined import RotatingSource
from openblip.data.tasks.base import DataOptions, TaskData
from openblip.data.views import ViewCache
from openblip.errors import ConfigError
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TASKS, TaskName
from openblip.training.config.data import DataSettings
from openblip.training.config.recipe import Recipe
from openblip.training.objectives.base import Batch
from openblip.training.processes import ProcessGroupInfo

_VALIDATION_WORKERS = 2


class BatchLoader:
    """Turns the tensors of a loader into batches on a device, with normalized pixels.

    Args:
        loader: Loads named tensors.
        batch_class: Dataclass with these names.
        image: Mean and standard deviation of the pixels.
        device: Device of the model.
    """

    def __init__(self, loader: Loader, batch_class: type[Batch], image: ImageSettings, device: torch.device) -> None:
        self._loader = loader
        self._batch_class, self._image, self._device = batch_class, image, device

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same for every process."""
        return self._loader.steps_per_epoch

    @property
    def report(self) -> Report:
        """The bad records so far."""
        return self._loader.report

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from number `start_step` on."""
        for tensors in self._loader.epoch(epoch, start_step):
            fields: dict[str, Any] = normalize_batch(tensors, self._image, self._device)
            yield self._batch_class(**fields)

    def close(self) -> None:
        """Stop the workers."""
        self._loader.close()


def build_data(
    recipe: Recipe,
    tokenizer: Tokenizer,
    image: ImageSettings,
    prompt: str | None,
    *,
    train: bool,
    task: TaskName | None = None,
) -> TaskData[Any]:
    """Build the data class of a recipe's task.

    Args:
        recipe: The recipe.
        tokenizer: Tokenizer of the model.
        image: Size, mean and standard deviation of the pixels.
        prompt: Text that every caption starts with.
        train: Augment images and draw texts; otherwise make no random draw.
        task: Another task than the recipe's.

    Raises:
        ConfigError: If the task lacks an option that the recipe sets.
    """
    views = None
    if recipe.data.views is not None:
        views = ViewCache(Path(recipe.data.views), recipe.data.view_count if train else 1)
    options = DataOptions(
        tokenizer=tokenizer,
        image=image,
        augment=recipe.augment if train else None,
        texts_per_image=recipe.data.texts_per_image if train else None,
        prompt=prompt or "",
        vg_weight=recipe.data.vg_weight,
        max_words=recipe.data.max_words,
        max_tokens=recipe.data.max_tokens,
        packed=recipe.data.packed and train,
        views=views,
    )
    data_class: type[TaskData[Any]] = TASKS[task or recipe.task].data.resolve()
    return data_class.from_options(options)


def open_train_source(settings: DataSettings) -> Source | Stream:
    """Open the training data; raises `ConfigError` if there is none."""
    if not settings.train and not settings.rotate:
        raise ConfigError("data.train must name at least one source, got none")
    always = _open(settings, settings.train, settings.split) if settings.train else None
    if not settings.rotate:
        return cast("Source | Stream", always)
    turns = [_open(settings, (address,), settings.split) for address in settings.rotate]
    if not all(isinstance(source, Source) for source in (*turns, *([always] if always else []))):
        raise ConfigError("data.rotate needs indexed sources: set data.stream=false, or rotate the streams themselves")
    return RotatingSource(cast("list[Source]", turns), [cast(Source, always)] if always else [])


def open_val_source(settings: DataSettings) -> Source | Stream | None:
    """Open the validation data, if there is any."""
    return _open(settings, settings.val, settings.val_split or settings.split) if settings.val else None


def _open(settings: DataSettings, addresses: Sequence[str], split: str | None) -> Source | Stream:
    columns = settings.columns or None
    return open_source(list(addresses), images=settings.images, columns=columns, split=split, stream=settings.stream)


def fit_workers(num_workers: int) -> int:
    """Return the number of loading processes, at most one per core. Batches do not depend on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_workers, cores)


def train_loader(
    recipe: Recipe,
    source: Source | Stream,
    data: TaskData[Any],
    batch_class: type[Batch],
    image: ImageSettings,
    group: ProcessGroupInfo,
) -> BatchLoader:
    """Return a loader of shuffled training batches; every process has its own share."""
    settings = recipe.data
    loader = Loader(
        source,
        data,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        rank=group.rank,
        world_size=group.world_size,
        num_workers=fit_workers(settings.num_workers),
        samples_per_epoch=settings.samples_per_epoch,
        shuffle_window=settings.shuffle_window,
        max_bad_records=settings.max_bad_records,
        pin_memory=group.device.type == "cuda",
        recurring_views=recipe.distill.views if recipe.distill is not None else None,
    )
    return BatchLoader(loader, batch_class, image, group.device)


def val_loader(
    recipe: Recipe,
    source: Source | Stream,
    data: TaskData[Any],
    batch_class: type[Batch],
    image: ImageSettings,
    group: ProcessGroupInfo,
) -> BatchLoader:
    """Return a loader of all validation samples, in order, in a single process."""
    loader = Loader(
        source,
        data,
        batch_size=recipe.batch_size,
        shuffle=False,
        drop_last=False,
        num_workers=fit_workers(min(recipe.data.num_workers, _VALIDATION_WORKERS)),
        samples_per_epoch=recipe.data.samples_per_epoch if isinstance(source, Stream) else None,
    )
    return BatchLoader(loader, batch_class, image, group.device)
