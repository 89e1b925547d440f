"""Recomputed activations and compiled layers change neither names, nor losses, nor gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from openblip.errors import ConfigError
from openblip.training.config import RunSettings
from openblip.training.speed import compile_layers, matmul_precision, recompute_vision
from tests.training.loop_toys import ToyLoader, toy_captioning

pytestmark = pytest.mark.usefixtures("one_thread")


def step(objective: nn.Module, batch: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(3)  # dropout and drop path
    losses = objective(batch)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    return losses, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("blocks", [1, 2])
def test_recomputing_changes_nothing_but_memory(blocks: int) -> None:
    batch = ToyLoader().batch(0, 0)
    plain, lean = toy_captioning(dropout=True), toy_captioning(dropout=True)
    recompute_vision(lean.model, blocks)
    assert plain.state_dict().keys() == lean.state_dict().keys()
    (losses, gradients), (same, repeated_gradients) = step(plain, batch), step(lean, batch)
    assert losses.keys() == same.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], same[name], rtol=0, atol=0)
    assert gradients.keys() == repeated_gradients.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], repeated_gradients[name], rtol=0, atol=0)


def test_only_the_last_blocks_keep_less() -> None:
    (most, plain), (less, final), (least, both) = (kept_and_run(blocks) for blocks in (0, 1, 2))
    assert most > less > least
    assert (plain, final, both) == ([0, 1], [0, 1, 1], [0, 1, 1, 0])


def kept_and_run(blocks: int) -> tuple[int, list[int]]:
    """How many numbers autograd keeps, and in which order the MLPs of the image encoder ran, forward and backward."""
    objective, runs, sizes = toy_captioning(), list[int](), list[int]()
    for index, block in enumerate(objective.model.vision.blocks):
        hook = partial(lambda index, *_: runs.append(index), index)
        block.get_submodule("mlp.fc1").register_forward_hook(hook)
    recompute_vision(objective.model, blocks)

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(ToyLoader().batch(0, 0))["lm"]
    torch.autograd.backward(loss)
    return sum(sizes), runs


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="between 0 and 2"):
        recompute_vision(toy_captioning().model, 3)


def test_compiled_layers_compute_the_same_under_the_same_names() -> None:
    batch = ToyLoader().batch(0, 0)
    plain, compiled = toy_captioning(), toy_captioning()
    assert compile_layers(compiled.model, backend="eager") == 3
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    (losses, gradients), (same, repeated_gradients) = step(plain, batch), step(compiled, batch)
    torch.testing.assert_close(losses["lm"], same["lm"])
    for name in gradients:
        torch.testing.assert_close(gradients[name], repeated_gradients[name])


FAULTS = """
import resource, sys, torch
from openblip.heap import keep_freed_memory
torch.set_num_threads(1)
keeps = keep_freed_memory() if sys.argv[1] == "keep" else True
def use(): return [torch.ones(6_000_000) for _ in range(4)]  # 24 MB each
for _ in range(3): use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): use()
print(keeps, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is one of glibc")
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    """Counted, not timed: the pages that the system had to hand out and clear."""
    # Left to itself glibc raises its threshold as it sees fit, and then keeps memory or not as the heap happens to lie.
    fixed = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}
    faults = {}
    for mode in ("keep", "plain"):
        command = [sys.executable, "-c", FAULTS, mode]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed).stdout
        keeps, faults[mode] = out.split()
        assert keeps == "True"
    assert int(faults["keep"]) * 4 < int(faults["plain"])


def test_the_precision_of_products_is_set_for_a_block() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ConfigError, match="matmul_precision must be one of highest, high, medium, got 'low'"):
        RunSettings(matmul_precision="low")  # type: ignore[arg-type]
