"""LoRA: what is frozen, what is learned, merging, and adapters on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from openblip.errors import CheckpointError, ConfigError
from openblip.training.config import LoraSettings
from openblip.training.lora import LoraLinear, add_lora, load_adapter, merge_lora, save_adapter
from openblip.training.objectives.captioning import Captioning
from tests.training.loop_toys import ToyLoader, toy_captioning

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = ToyLoader().batch(0, 0)
SETTINGS = LoraSettings(r=3, targets=("query", "value", "qkv", "proj"))


def trained(settings: LoraSettings = SETTINGS, steps: int = 3) -> Captioning:
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
    torch.testing.assert_close(layer.merged()(x), expected)


def test_it_starts_as_the_model_it_was() -> None:
    plain, corrected = toy_captioning(), toy_captioning()
    add_lora(corrected.model, SETTINGS)
    assert torch.equal(plain(BATCH)["lm"], corrected(BATCH)["lm"])


def test_only_corrections_learn() -> None:
    before = toy_captioning().state_dict()
    after = trained().state_dict()
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if ".lora_" in name}
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in changed}
    assert layers == {"query", "value", "qkv", "proj"}
    assert all(after[name].abs().sum() > 0 for name in changed)


def test_names_given_learn_whole() -> None:
    objective = trained(LoraSettings(r=2, also=("lm_head.*",)))
    names = {name for name, p in objective.named_parameters() if p.requires_grad and "lora" not in name}
    assert names == {
        f"model.lm_head.{part}" for part in ("bias", "dense.weight", "dense.bias", "norm.weight", "norm.bias")
    }


def test_merging_keeps_the_function_and_restores_the_names() -> None:
    objective = trained()
    loss = objective(BATCH)["lm"]
    merge_lora(objective)
    assert objective.state_dict().keys() == toy_captioning().state_dict().keys()
    torch.testing.assert_close(objective(BATCH)["lm"], loss)
    assert abs(loss.item() - toy_captioning()(BATCH)["lm"].item()) > 1e-3, "it has learned something"


def test_an_adapter_on_disk_fits_its_base_again(tmp_path: Path) -> None:
    settings = LoraSettings(r=3, alpha=1.0, targets=("qkv", "value"), also=("lm_head.*",))
    objective = trained(settings)
    save_adapter(objective.model, tmp_path / "adapter", settings, "toy")
    again = toy_captioning()
    assert load_adapter(again.model, tmp_path / "adapter") == settings
    assert torch.equal(again(BATCH)["lm"], objective(BATCH)["lm"])
    whole = sum(p.numel() for p in objective.parameters())
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) < whole / 4


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(trained().model, tmp_path / "adapter", LoraSettings(r=2, targets=("qkv",)), "toy")
    with pytest.raises(CheckpointError, match="another model"):
        load_adapter(toy_captioning().model, tmp_path / "adapter")


def test_targets_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        add_lora(toy_captioning().model, LoraSettings(targets=("q_proj",)))
    with pytest.raises(ConfigError, match="no parameter"):
        add_lora(toy_captioning().model, LoraSettings(also=("classifier.*",)))
    with pytest.raises(ConfigError, match="rank"):
        LoraSettings(r=0)
