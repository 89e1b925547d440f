"""Preparing a model for boxes: positions tell left from right, bins have an order, and nothing else changes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.checkpoints import read, write
from openblip.preprocess.settings import ImageSettings
from tests.toys import SIZE, toy_model, toy_tokenizer

script: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "pocket_boxes.py"))
BIN_TOKENS = slice(script["FIRST_ID"], script["FIRST_ID"] + script["BINS"] + 1)


def test_a_prepared_model_tells_sides_and_bins_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = toy_model("pretrain")
    write.save(before, tmp_path / "model", tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
    arguments = ["pocket_boxes.py", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    script["main"]()
    old, new = before.state_dict(), read.load(tmp_path / "out").model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    positions = next(name for name in changed if "pos_embed" in name)
    words = next(name for name in changed if name.endswith("embeddings.word.weight"))
    assert all(torch.equal(new[name], new[words]) for name in changed - {positions}), "only tied copies of the words"
    added = (new[positions] - old[positions])[0]
    assert not added[0].any(), "the class token has no position"
    side = round((len(added) - 1) ** 0.5)
    columns = added[1:].view(side, side, -1)
    assert torch.allclose(columns, columns[:1].expand_as(columns), atol=1e-5), "equal rows"
    assert torch.allclose(columns, -columns.flip(1), atol=1e-4), "left and right are opposite"
    assert (columns[0, : side // 2].norm(dim=1) > 1).all()
    outside = torch.ones(len(old[words]), dtype=torch.bool)
    outside[BIN_TOKENS] = False
    assert torch.equal(new[words][outside], old[words][outside])


def test_near_bins_are_similar_and_far_ones_are_not() -> None:
    table = script["bin_waves"](192, 3.0, torch.Generator().manual_seed(0))
    assert table.norm(dim=1).mean().item() == pytest.approx(3.0)
    unit = torch.nn.functional.normalize(table, dim=1)
    similarity = unit @ unit.T
    assert similarity.diagonal(1).min() > 0.9
    assert similarity.diagonal(16).abs().max() < 0.6
