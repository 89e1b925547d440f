"""AdamW's groups, its state by name, and clipping."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from openblip.errors import CheckpointError, ConfigError
from openblip.training.config import AdamWSettings
from openblip.training.optim import BackwardUpdates, build_adamw, full_optimizer_state, load_optimizer_state
from openblip.training.sharding import clip_gradients
from openblip.training.speed import recompute_vision
from tests.training.loop_toys import OBJECTIVES, ToyLoader, toy_batch, toy_captioning, toy_objective, toy_pretraining

pytestmark = pytest.mark.usefixtures("one_thread")


def decays(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_published_groups_decay_everything_that_trains_and_nothing_else() -> None:
    objective = toy_pretraining()
    groups = decays(objective, build_adamw(objective, AdamWSettings(weight_decay=0.05)))
    assert set(groups.values()) == {0.05}
    assert groups.keys() == {name for name, _ in objective.named_parameters() if name.startswith("model.")}
    assert "model.temperature" in groups
    assert "model.vision.blocks.0.norm1.bias" in groups


def test_lavis_groups_spare_vectors_and_scalars() -> None:
    objective = toy_pretraining()
    groups = decays(objective, build_adamw(objective, AdamWSettings(groups="lavis")))
    spared = {name for name, decay in groups.items() if decay == 0.0}
    assert spared == {
        name for name in groups if name.endswith("bias") or ".norm" in name or "_norm" in name or "temperature" in name
    }
    assert groups["model.vision.pos_embed"] == 0.05


def test_one_step_is_adamw_as_its_paper_writes_it() -> None:
    layer = nn.Linear(3, 2)
    settings = AdamWSettings(weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    optimizer = build_adamw(layer, settings)
    optimizer.param_groups[0]["lr"] = 0.01
    state_before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    layer(torch.randn(4, 3)).pow(2).sum().backward()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        g = parameter.grad
        assert g is not None
        moved = g / (g.square().sqrt() + 1e-6)  # after one step both averages, bias corrected, are g and g * g
        torch.testing.assert_close(parameter.data, state_before[name] * (1 - 0.01 * 0.1) - 0.01 * moved)


def test_nothing_to_train_is_an_error() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        build_adamw(layer, AdamWSettings())


def test_state_goes_by_name_into_other_groups_and_continues_the_same() -> None:
    batches = ToyLoader(steps_per_epoch=3)
    results = []
    for regroup in (False, True):
        objective = toy_captioning()
        optimizer = build_adamw(objective, AdamWSettings(weight_decay=0.0))
        for step in range(3):
            if regroup and step == 2:
                state = full_optimizer_state(objective, optimizer)
                optimizer = build_adamw(objective, AdamWSettings(weight_decay=0.0, groups="lavis"))
                load_optimizer_state(objective, optimizer, state)
            optimizer.zero_grad()
            torch.autograd.backward(objective(batches.batch(0, step))["lm"])
            optimizer.step()
        results.append(objective.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_takes_its_state_back(name: str) -> None:
    """Also those that leave parameters without a gradient: grounding's text encoder, whose cross-attention is idle."""
    objective = toy_objective(name)
    optimizer = build_adamw(objective, AdamWSettings())
    sum(value for value in objective(toy_batch(name)).values() if value.requires_grad).backward()
    optimizer.step()
    state = full_optimizer_state(objective, optimizer)
    assert any(not state_of_parameter for state_of_parameter in state.values()) == (name == "grounding")
    fresh = build_adamw(objective, AdamWSettings())
    load_optimizer_state(objective, fresh, state)
    restored = full_optimizer_state(objective, fresh)
    assert state.keys() == restored.keys()
    assert all(torch.equal(state[name][key], restored[name][key]) for name in state for key in state[name])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("num_bytes", [1, 20_000])  # every parameter on its own, and several at a time
def test_updates_during_the_backward_pass_are_those_after_it(name: str, num_bytes: int) -> None:
    """Bit for bit, also of a text transformer with several uses and of recomputed activations."""
    states = []
    for early in (False, True):
        objective = toy_objective(name)
        recompute_vision(objective.model, 1)
        optimizer = build_adamw(objective, AdamWSettings())
        updates, most_gradients = BackwardUpdates(optimizer, num_bytes), 0
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def count(*_: object, parameters: list[nn.Parameter] = parameters) -> None:
            nonlocal most_gradients
            most_gradients = max(most_gradients, sum(p.grad is not None for p in parameters))

        handles = [parameter.register_post_accumulate_grad_hook(count) for parameter in parameters]
        for _ in range(2):
            torch.manual_seed(3)
            loss = sum(value for value in objective(toy_batch(name)).values() if value.requires_grad)
            with updates.during_backward() if early else nullcontext():
                loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for handle in handles:
            handle.remove()
        states.append({**objective.state_dict(), "most": torch.tensor(most_gradients)})
        assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)
    after, during = states
    assert during.pop("most") < after.pop("most") / 2
    assert all(torch.equal(after[key], during[key]) for key in after)


def test_state_of_other_parameters_is_refused() -> None:
    objective = toy_captioning()
    optimizer = build_adamw(objective, AdamWSettings())
    with pytest.raises(CheckpointError, match="is of other parameters"):
        load_optimizer_state(objective, optimizer, {"model.unknown": {"step": torch.zeros(())}})


def test_clipping_is_that_of_torch() -> None:
    layers = [nn.Linear(5, 3), nn.Linear(5, 3)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(7, 5)
    for layer in layers:
        layer(x).pow(2).sum().backward()
    theirs = nn.utils.clip_grad_norm_(layers[0].parameters(), 0.5)
    ours = clip_gradients(layers[1].parameters(), 0.5)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("wrong", [{"clip_norm": 0.0}, {"weight_decay": -1.0}, {"beta1": 1.0}, {"eps": 0.0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        AdamWSettings(**wrong)  # type: ignore[arg-type]
