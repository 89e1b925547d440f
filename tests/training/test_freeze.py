"""Frozen parts of a model: not trained, not decayed, and named correctly."""

from __future__ import annotations

import pytest
import torch

from openblip.errors import ConfigError
from openblip.training.config import AdamWSettings
from openblip.training.optim import build_adamw
from openblip.training.run import freeze
from tests.toys import toy_hybrid


def test_frozen_parts_get_no_gradient_and_no_step() -> None:
    model = toy_hybrid("caption")
    freeze(model, ["vision.stem", "vision.pos_embed"])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build_adamw(model, AdamWSettings())
    torch.autograd.backward(sum((p.square().sum() for p in model.parameters()), torch.zeros(())))
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("vision.stem.") or name == "vision.pos_embed"
        assert torch.equal(parameter, before[name]) == (frozen or not before[name].any()), name


def test_a_part_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze must name parts of the model, got vision\.ste"):
        freeze(toy_hybrid("caption"), ["vision.ste"])
