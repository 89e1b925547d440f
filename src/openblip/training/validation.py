"""Quick evaluations during training: metrics on validation data, and texts for some images.

They are no benchmarks. A run accepts a further evaluation, such as a benchmark, next to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.data.sources.base import Source, Stream
from openblip.data.tasks.caption import CaptionData
from openblip.errors import ImageError
from openblip.model.captioner import Captioner
from openblip.preprocess.image import load_image, resize, to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TASKS
from openblip.training.cider import measure_cider
from openblip.training.config.recipe import Recipe
from openblip.training.data import build_data, open_val_source, val_loader
from openblip.training.objectives.base import Batch, Objective, PreviewImage
from openblip.training.processes import ProcessGroupInfo
from openblip.training.trainer import Evaluation, Progress

DEFAULT_QUESTION = "what is in the picture?"


class Validator:
    """The evaluation of a run, by the task's objective.

    | task | metrics |
    | --- | --- |
    | caption, vqa | `val_loss`; for captions also `cider`, of `evaluate.num_captions` images |
    | nlvr, visdial | `val_loss`, `accuracy` |
    | grounding | `val_loss`, `accuracy`: share of boxes with IoU >= 0.5 |
    | retrieval, pretrain | `t2i_r1` ... `i2t_r10`: recall by ITC in percent; `r_mean`: their mean |

    Args:
        recipe: The recipe.
        tokenizer: Tokenizer of the model.
        image: Size, mean and standard deviation of the pixels.
        prompt: Text that every caption starts with.
        group: This process and its group.
        train_source: Training data, whose images are described if there is no validation data.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        image: ImageSettings,
        prompt: str | None,
        group: ProcessGroupInfo,
        train_source: Source | Stream,
    ) -> None:
        self.recipe, self.tokenizer, self.image, self.group = recipe, tokenizer, image, group
        self.prompt = prompt or ""
        self.objective_class: type[Objective[Any, Any, Any, Any]] = TASKS[recipe.task].objective.resolve()
        task = self.objective_class.validation_task or recipe.task
        self.data = build_data(recipe, tokenizer, image, prompt, train=False, task=task)
        val_source = self.val_source = open_val_source(recipe.data)
        self.loader = None
        if val_source is not None:
            batch_class = TASKS[task].objective.resolve().batch_class
            self.loader = val_loader(recipe, val_source, self.data, batch_class, image, group)
        self.previews: list[PreviewImage] = []
        if self.objective_class.has_previews:
            self.previews = list(self._open_previews(train_source if val_source is None else val_source))

    def __call__(self, model: nn.Module, progress: Progress) -> Evaluation:
        """Evaluate a model."""
        metrics: Mapping[str, float] = {}
        if self.loader is not None:
            metrics = self.objective_class.validate(model, self._batches(), self.recipe.loss, self.data)
        if isinstance(model, Captioner) and isinstance(self.val_source, Source) and self.recipe.evaluate.num_captions:
            metrics = {**metrics, "cider": self._measure_cider(model, self.val_source)}
        samples: list[Mapping[str, str]] = []
        if self.previews:
            samples = self.objective_class.describe(model, self.tokenizer, self.previews, self.prompt)
        return Evaluation(metrics, samples)

    def _measure_cider(self, model: Captioner, source: Source) -> float:
        records = [source[index] for index in range(min(self.recipe.evaluate.num_captions, len(source)))]
        usable = [record for record in records if isinstance(record, Record) and record.captions]
        transform = cast(CaptionData, self.data).transform
        return measure_cider(model, self.tokenizer, usable, transform, self.image, self.prompt, self.group.device)

    def _batches(self) -> Iterable[Batch]:
        assert self.loader is not None
        try:
            yield from islice(self.loader.epoch(0), self.recipe.evaluate.max_batches or None)
        finally:
            self.loader.close()

    def _open_previews(self, source: Source | Stream) -> Iterator[PreviewImage]:
        settings = self.recipe.evaluate
        if settings.images:
            for path in settings.images:
                yield self._preview(path, load_image(path), DEFAULT_QUESTION)
        elif isinstance(source, Source):
            yield from islice(self._previews_of(source), settings.num_samples)

    def _previews_of(self, source: Source) -> Iterator[PreviewImage]:
        """Yield the single images of a source that can be opened."""
        for record in source:
            if len(record.images) != 1:
                continue
            question = record.questions[0].text if record.questions else DEFAULT_QUESTION
            with suppress(ImageError):
                yield self._preview(record.images[0].address, open_image(record.images[0]), question)

    def _preview(self, name: str, image: Image.Image, question: str) -> PreviewImage:
        pixels = torch.from_numpy(resize(image, self.image.size))[None]
        return PreviewImage(name, to_tensor(pixels, self.image)[0].to(self.group.device), question)
