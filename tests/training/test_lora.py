"""LoRA: frozen and trained weights, merging, and adapters on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openblip.checkpoints.adapter import load_adapter
from openblip.errors import CheckpointError, ConfigError
from openblip.model.build import build_model
from openblip.training.config import LoraSettings
from openblip.training.lora import LoraLinear, add_lora, merge_lora, save_adapter
from openblip.training.objectives.caption import CaptionObjective
from tests.toys import toy_config, toy_model
from tests.training.loop_toys import ToyLoader, toy_captioning

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = ToyLoader().batch(0, 0)
SETTINGS = LoraSettings(r=3, target_modules=("query", "value", "qkv", "proj"))


def trained(settings: LoraSettings = SETTINGS, steps: int = 3) -> CaptionObjective:
    """A toy captioning objective whose model learned for some steps."""
    objective = toy_captioning()
    add_lora(objective.model, settings)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(objective(ToyLoader().batch(0, step))["lm"])
        optimizer.step()
    return objective


def test_the_correction_is_the_formula() -> None:
    linear = nn.Linear(6, 4)
    layer = LoraLinear(linear, LoraSettings(r=2, alpha=3.0))
    nn.init.normal_(layer.lora_b)
    x = torch.randn(5, 6)
    expected = x @ (linear.weight + 1.5 * layer.lora_b @ layer.lora_a).T + linear.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merge()(x), expected)


def test_it_starts_as_the_model_it_was() -> None:
    plain, corrected = toy_captioning(), toy_captioning()
    add_lora(corrected.model, SETTINGS)
    assert torch.equal(plain(BATCH)["lm"], corrected(BATCH)["lm"])


def test_only_corrections_learn() -> None:
    state_before = toy_captioning().state_dict()
    after = trained().state_dict()
    changed = {name for name in after if name not in state_before or not torch.equal(state_before[name], after[name])}
    assert changed == {name for name in after if ".lora_" in name}
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in changed}
    assert layers == {"query", "value", "qkv", "proj"}
    assert all(after[name].abs().sum() > 0 for name in changed)


def test_names_given_learn_whole() -> None:
    objective = trained(LoraSettings(r=2, modules_to_save=("lm_head",)))
    names = {name for name, p in objective.named_parameters() if p.requires_grad and "lora" not in name}
    assert names == {
        f"model.lm_head.{name}" for name in ("bias", "dense.weight", "dense.bias", "norm.weight", "norm.bias")
    }


def test_merging_keeps_the_function_and_restores_the_names() -> None:
    objective = trained()
    loss = objective(BATCH)["lm"]
    merge_lora(objective)
    assert objective.state_dict().keys() == toy_captioning().state_dict().keys()
    torch.testing.assert_close(objective(BATCH)["lm"], loss)
    assert abs(loss.item() - toy_captioning()(BATCH)["lm"].item()) > 1e-3, "it has learned something"


def test_a_saved_adapter_merges_into_its_base(tmp_path: Path) -> None:
    settings = LoraSettings(r=3, alpha=1.0, target_modules=("qkv", "value"), modules_to_save=("lm_head",))
    objective = trained(settings)
    save_adapter(objective.model, tmp_path / "adapter", settings, "toy")
    base = toy_captioning()
    load_adapter(base.model, tmp_path / "adapter")
    merge_lora(objective.model)
    merged = objective.model.state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in base.model.state_dict().items())
    assert abs(base(BATCH)["lm"].item() - toy_captioning()(BATCH)["lm"].item()) > 1e-3


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(trained().model, tmp_path / "adapter", SETTINGS, "toy")
    with pytest.raises(CheckpointError, match="another model"):
        load_adapter(toy_model("retrieval"), tmp_path / "adapter")
    config = toy_config("caption")
    vision = dataclasses.replace(config.vision, mlp_width=32, width=16, heads=2)
    text = dataclasses.replace(config.text, memory_width=16)
    narrow = build_model(dataclasses.replace(config, vision=vision, text=text))
    with pytest.raises(CheckpointError, match=r"another model: .* must have the shape"):
        load_adapter(narrow, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"peft_type": "LOHA"}, "must be a LoRA adapter"), ({"use_dora": True}, "without DoRA"), (None, "cannot be read")],
)
def test_adapters_of_other_kinds_are_refused(change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    folder = save_adapter(trained().model, tmp_path / "adapter", SETTINGS, "toy")
    config = json.loads((folder / "adapter_config.json").read_text())
    text = "{" if change is None else json.dumps(config | change)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(toy_captioning().model, folder)


def test_targets_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="must name linear layers"):
        add_lora(toy_captioning().model, LoraSettings(target_modules=("q_proj",)))
    with pytest.raises(ConfigError, match="must name modules"):
        add_lora(toy_captioning().model, LoraSettings(modules_to_save=("classifier",)))
    with pytest.raises(ConfigError, match="r must be at least 1"):
        LoraSettings(r=0)
