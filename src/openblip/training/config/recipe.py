"""A recipe: all settings of a run, read from a YAML file and from `key=value` overrides.

The defaults are the published values of fine-tuning, where all published training agrees. Values that only some
published runs have are in `recipes/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.data.augment import AugmentSettings
from openblip.errors import ConfigError
from openblip.io import atomic
from openblip.tasks import TaskName
from openblip.training.config import parsing
from openblip.training.config.data import DataSettings
from openblip.training.config.distill import DistillSettings
from openblip.training.config.loss import Loss, loss_class
from openblip.training.config.model import ModelSettings
from openblip.training.config.optim import AdamWSettings, LoraSettings
from openblip.training.config.run import EvaluateSettings, RunSettings, check_at_least
from openblip.training.config.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run.

    Attributes:
        loss: Options of the task's loss. The loss determines the task.
        start: Checkpoints to start from: one of this task or of a task that leads to it, or, for pretraining, a ViT
            and a BERT. Each is a bundle, a published name, a hub id, a folder or a file.
        out: Folder for the results; `runs/TASK` if empty.
        seed: Seed of all random draws.
        epochs: Passes over the data.
        batch_size: Samples that one process computes at a time.
        total_batch_size: Samples per step. With fewer processes than were published, more batches are accumulated.
            By default one batch per process.
        tokenizer: Vocabulary file or folder; the start's if `None`.
        model: Sizes of the model.
        data: Training and validation data.
        augment: Random changes to training images.
        optimizer: Options of AdamW.
        schedule: Learning rate.
        lora: Options of LoRA; `None` trains all weights.
        distill: The teacher, and what to learn from it; `None` learns without one.
        run: Device, precision, logs and checkpoints.
        evaluate: Evaluations and the final model.

    Raises:
        ConfigError: If settings contradict each other.
    """

    loss: Loss
    start: tuple[str, ...] = ()
    out: str = ""
    seed: int = 42
    epochs: int = 5
    batch_size: int = 16
    total_batch_size: int | None = None
    tokenizer: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimizer: AdamWSettings = field(default_factory=AdamWSettings)
    schedule: Schedule = field(default_factory=Schedule)
    lora: LoraSettings | None = None
    distill: DistillSettings | None = None
    run: RunSettings = field(default_factory=RunSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "epochs", "batch_size")
        if self.distill is not None and self.data.views is not None:
            raise ConfigError("distill needs images, so data.views must be None, got cached features")
        if self.evaluate.final == "average" and self.run.keep_checkpoints < self.evaluate.average_checkpoints:
            raise ConfigError(
                f"run.keep_checkpoints must be at least evaluate.average_checkpoints "
                f"({self.evaluate.average_checkpoints}), got {self.run.keep_checkpoints}"
            )

    @property
    def task(self) -> TaskName:
        """The task, which the loss determines."""
        return self.loss.task

    @property
    def folder(self) -> Path:
        """Folder of the run's results."""
        return Path(self.out or f"runs/{self.task}")

    def accumulation(self, world_size: int) -> int:
        """Return the number of batches per step.

        Args:
            world_size: Number of processes.

        Returns:
            Batches that each process accumulates per step.

        Raises:
            ConfigError: If `total_batch_size` is not a multiple of the samples that all processes compute at a time.
        """
        per_batch = self.batch_size * world_size
        total = self.total_batch_size or per_batch
        if total % per_batch:
            processes = "1 process" if world_size == 1 else f"{world_size} processes"
            raise ConfigError(
                f"total_batch_size must be a multiple of {per_batch} ({processes} with batches of {self.batch_size}), "
                f"got {total}"
            )
        return total // per_batch

    def to_table(self) -> dict[str, parsing.YamlValue]:
        """Return all settings as a table for YAML.

        Returns:
            Plain values by name; `recipe_from_table` builds an equal recipe from them.
        """
        return {"task": self.task, **parsing.as_table(self)}

    def override(self, assignments: Sequence[str]) -> Recipe:
        """Return a recipe with changed settings.

        Args:
            assignments: `key=value` each, such as `schedule.lr=1e-5`.

        Returns:
            The changed recipe.

        Raises:
            ConfigError: If an assignment is malformed, or a setting unknown or out of range.
        """
        return recipe_from_table(parsing.override(self.to_table(), assignments)) if assignments else self


def recipe_from_table(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from a table, as YAML gives it.

    Args:
        values: Settings by name; `task` is required.

    Returns:
        The recipe.

    Raises:
        ConfigError: If a setting is unknown, missing or out of range.
    """
    values = dict(values)
    task: TaskName = parsing.convert(values.pop("task", None), TaskName, "task")
    values["loss"] = parsing.convert(values.pop("loss", None), loss_class(task), "loss")
    return parsing.build(Recipe, values)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: The file.
        overrides: `key=value` assignments, such as `schedule.lr=1e-5`.

    Returns:
        The recipe.

    Raises:
        ConfigError: If the file cannot be read, or a setting is unknown, missing or out of range.
    """
    return recipe_from_table(parsing.override(parsing.read_table(path), overrides))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe with all its settings as YAML.

    Args:
        recipe: The recipe.
        path: The file to create or replace.

    Raises:
        InputError: If PyYAML is missing.
    """
    atomic.write_text(path, parsing.write_yaml(recipe.to_table()))


# Settings that may change when a run is resumed; any other change would make it another run.
FREE_SETTINGS = (
    "out",
    "epochs",
    "run.device",
    "run.log_every",
    "run.save_every",
    "run.keep_checkpoints",
    "run.charts",
    "run.timeout_minutes",
    "data.num_workers",
    "data.val",
    "data.val_split",
    "evaluate",
)


def check_same_run(previous: Recipe, current: Recipe) -> None:
    """Raise `ConfigError` if a run that started with one recipe cannot resume with another."""
    changed = parsing.differences(previous.to_table(), current.to_table())
    fixed = [name for name in changed if not any(name == free or name.startswith(f"{free}.") for free in FREE_SETTINGS)]
    if fixed:
        raise ConfigError(
            f"a resumed run must keep its settings; {', '.join(fixed)} differ. Set another out to start a new run"
        )


def fine_tuning_recipe(task: TaskName, **settings: Any) -> Recipe:
    """Return the recipe of a run on a user's own data: the published values of the task, and five epochs.

    Args:
        task: The task.
        **settings: Fields of the recipe, which replace the published values.

    Returns:
        The recipe.
    """
    loss = loss_class(task)()
    published = loss.published
    fields: dict[str, Any] = {
        "loss": loss,
        "schedule": Schedule(lr=published.lr),
        "optimizer": AdamWSettings(weight_decay=published.weight_decay),
        "augment": AugmentSettings(jitter=published.jitter),
    }
    return Recipe(**(fields | settings))
