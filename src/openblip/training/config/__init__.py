"""The settings of a training run: frozen dataclasses, one file per part of a recipe (no torch)."""

from __future__ import annotations

from openblip.data.augment import AugmentSettings
from openblip.training.config.data import DataSettings
from openblip.training.config.distill import DistillSettings
from openblip.training.config.loss import (
    CaptionLoss,
    GroundingLoss,
    Loss,
    NlvrLoss,
    PretrainLoss,
    RetrievalLoss,
    VisdialLoss,
    VqaLoss,
)
from openblip.training.config.model import ModelSettings
from openblip.training.config.optim import AdamWSettings, LoraSettings
from openblip.training.config.recipe import (
    Recipe,
    check_same_run,
    fine_tuning_recipe,
    read_recipe,
    recipe_from_table,
    write_recipe,
)
from openblip.training.config.run import EvaluateSettings, RunSettings
from openblip.training.config.schedule import Schedule

__all__ = [
    "AdamWSettings",
    "AugmentSettings",
    "CaptionLoss",
    "DataSettings",
    "DistillSettings",
    "EvaluateSettings",
    "GroundingLoss",
    "LoraSettings",
    "Loss",
    "ModelSettings",
    "NlvrLoss",
    "PretrainLoss",
    "Recipe",
    "RetrievalLoss",
    "RunSettings",
    "Schedule",
    "VisdialLoss",
    "VqaLoss",
    "check_same_run",
    "fine_tuning_recipe",
    "read_recipe",
    "recipe_from_table",
    "write_recipe",
]
