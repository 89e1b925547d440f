"""Fine-tune a model in one call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from openblip.errors import ConfigError
from openblip.tasks import TaskName, check
from openblip.training.config.data import DataSettings
from openblip.training.config.distill import DistillSettings
from openblip.training.config.loss import loss_class
from openblip.training.config.optim import LoraSettings
from openblip.training.config.recipe import Recipe, fine_tuning_recipe
from openblip.training.config.run import EvaluateSettings, Precision, RunSettings
from openblip.training.config.schedule import Schedule
from openblip.training.reporters import BarReporter
from openblip.training.run import RunResult, run

PathLike: TypeAlias = "str | os.PathLike[str]"
Setting: TypeAlias = "str | int | float | bool | Sequence[Setting] | Mapping[str, Setting] | None"

LORA_LR_FACTOR = 10
"""Adapters learn well at this many times the rate of full fine-tuning."""


def train(
    task: TaskName,
    data: PathLike | Sequence[PathLike],
    *,
    val: PathLike | Sequence[PathLike] = (),
    images: PathLike | None = None,
    start: PathLike = "pocket",
    lora: int | LoraSettings | None = None,
    teacher: str | None = None,
    out: PathLike = "",
    epochs: int = 5,
    batch_size: int = 16,
    lr: float | None = None,
    patience: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    threads: int | None = None,
    resume: bool = False,
    progress: bool = True,
    settings: Mapping[str, Setting] | None = None,
) -> RunResult:
    """Fine-tune a model on your own data, as `openblip train TASK` does.

    Args:
        task: What to learn: "caption", "vqa", "retrieval", "nlvr", "grounding" or "visdial".
        data: Training data in any form that `openblip.data.sources.open_source` reads: a folder, a list, tars.
        val: Validation data, to evaluate the model on after each epoch.
        images: Folder to resolve relative image paths against; by default the folder of the data.
        start: Model to start from: "pocket", "base", "large", a folder or a `.pth` file.
        lora: Rank of LoRA adapters, or all their options; by default all weights are trained.
        teacher: Model to distill: "base", "large", a folder, a `.pth` file or `"module:function"`.
        out: Folder for the results; by default `runs/TASK`.
        epochs: Passes over the data.
        batch_size: Samples to process at once.
        lr: Highest learning rate; by default the published one, ten times that with LoRA.
        patience: Evaluations without a better result on `val` that end the run, which then leaves the best model; 0
            trains to the end. The result is the loss, or for retrieval the mean recall.
        device: Device to train on: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: Precision of the arithmetic: "fp32", "bf16" or "fp16".
        threads: CPU threads to compute with, for the whole process; by default all cores.
        resume: Resume the run in `out`, if there is one.
        progress: Whether to show a progress bar, losses and samples on standard error.
        settings: Further settings of the recipe by dotted name, such as `{"schedule.warmup_steps": 100}`.

    Returns:
        The result; `result.model` is a folder that `openblip.load` loads.

    Raises:
        ConfigError: Settings are wrong, or `out` holds another run.
        CheckpointError: The model to start from cannot be used.
        InputError: The data cannot be used, or the extra `train` is not installed.
        TrainingError: The loss is no longer finite.

    Examples:
        >>> result = openblip.train("caption", "my.jsonl", start="base", lora=16)  # doctest: +SKIP
        >>> openblip.load(result.model).caption("photo.jpg").text  # doctest: +SKIP
        'a cat on a bed'
    """
    recipe = build_recipe(
        task,
        data,
        val=val,
        images=images,
        start=start,
        lora=lora,
        teacher=teacher,
        out=out,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        patience=patience,
        device=device,
        precision=precision,
    )
    assignments = [f"{name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    return train_recipe(recipe.override(assignments), threads=threads, resume=resume, progress=progress)


def build_recipe(
    task: TaskName,
    data: PathLike | Sequence[PathLike],
    *,
    val: PathLike | Sequence[PathLike] = (),
    images: PathLike | None = None,
    start: PathLike = "pocket",
    lora: int | LoraSettings | None = None,
    teacher: str | None = None,
    out: PathLike = "",
    epochs: int = 5,
    batch_size: int = 16,
    lr: float | None = None,
    patience: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
) -> Recipe:
    """Return the recipe that [`train`][openblip.train] runs; the arguments are the same.

    Raises:
        ConfigError: If settings are wrong.
        InputError: If the task is unknown.
    """
    check(task)
    if patience and not val:
        raise ConfigError("patience needs validation data (val, or --val), got none")
    if lr is None:
        lr = loss_class(task).published.lr * (1 if lora is None else LORA_LR_FACTOR)
    evaluate = EvaluateSettings()
    if patience:
        evaluate = EvaluateSettings(metric="val_loss", goal="min", patience=patience, final="best")
        if task == "retrieval":
            evaluate = EvaluateSettings(metric="r_mean", goal="max", patience=patience, final="best")
    return fine_tuning_recipe(
        task,
        start=(os.fspath(start),),
        data=DataSettings(train=_paths(data), val=_paths(val), images=None if images is None else os.fspath(images)),
        lora=LoraSettings(r=lora) if isinstance(lora, int) else lora,
        distill=None if teacher is None else DistillSettings(teacher=teacher),
        schedule=Schedule(lr=lr),
        run=RunSettings(device=device, precision=precision),
        evaluate=evaluate,
        epochs=epochs,
        batch_size=batch_size,
        out=os.fspath(out),
    )


def train_recipe(
    recipe: Recipe, *, threads: int | None = None, resume: bool = False, progress: bool = True
) -> RunResult:
    """Train as a recipe says, with a progress bar.

    Args:
        recipe: All settings of the run.
        threads: CPU threads to compute with, for the whole process; by default all cores.
        resume: Resume the run in the recipe's folder, if there is one.
        progress: Whether to show a progress bar, losses, samples and bad records on standard error.

    Returns:
        The result; see [`run`][openblip.training.run.run] for the errors.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if not progress:
        return run(recipe, resume=resume)
    bar = BarReporter()
    result = run(recipe, resume=resume, reporters=[bar], notify=bar.print)
    if result.is_main and (len(result.report) or result.report.skips.counts):
        bar.print(str(result.report))
    return result


def _paths(paths: PathLike | Sequence[PathLike]) -> tuple[str, ...]:
    if isinstance(paths, str | Path | os.PathLike):
        return (os.fspath(paths),)
    return tuple(os.fspath(path) for path in paths)
