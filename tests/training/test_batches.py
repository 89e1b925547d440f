"""Batches of a run: tensors of the loader become the objective's batch, in the calling process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openblip.data.sources import open_source
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TASK_NAMES, TASKS, TaskName
from openblip.training.config import recipe_from_table
from openblip.training.config.loss import loss_class
from openblip.training.data import build_data, train_loader, val_loader
from openblip.training.objectives.base import Batch
from openblip.training.objectives.caption import CaptionBatch
from openblip.training.processes import ProcessGroupInfo
from tests.data.data_toys import SIZE, rows, write_jsonl
from tests.toys import toy_tokenizer

GROUP = ProcessGroupInfo(torch.device("cpu"))


def test_workers_send_bytes_and_this_process_normalizes(tmp_path: Path) -> None:
    recipe = recipe_from_table({"task": "caption", "batch_size": 2, "data": {"num_workers": 1}})
    source = open_source(write_jsonl(tmp_path / "x.jsonl", rows(4, tmp_path)))
    image = ImageSettings(SIZE)
    data = build_data(recipe, toy_tokenizer(), image, "", train=False)
    for make_loader in (train_loader, val_loader):
        loader = make_loader(recipe, source, data, CaptionBatch, image, GROUP)
        batches = list(loader.epoch(0))
        loader.close()
        assert len(batches) == loader.steps_per_epoch == 2
        for batch in batches:
            assert isinstance(batch, CaptionBatch)
            assert batch.num_images == 2
            assert batch.pixels.shape == (2, 3, SIZE, SIZE)
            assert batch.pixels.dtype == torch.float32
            assert len(loader.report) == 0


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_has_data_a_batch_and_loss_options(task: TaskName) -> None:
    """The classes that the registry names agree with each other."""
    recipe = recipe_from_table({"task": task})
    spec = TASKS[task]
    data = build_data(recipe, toy_tokenizer(), ImageSettings(32), "", train=True)
    assert type(data) is spec.data.resolve()
    assert issubclass(spec.objective.resolve().batch_class, Batch)
    assert type(recipe.loss) is loss_class(task)
    assert recipe.task == task
