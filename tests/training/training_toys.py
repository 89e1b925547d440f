"""Recorded models of the original implementations, and toy models to train."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openblip.checkpoints.layouts import table
from openblip.checkpoints.read import load
from openblip.model.build import build_model
from openblip.model.config import ModelConfig, ModelKind, TextConfig, VisionConfig
from tests.conftest import GOLDEN


class Recording:
    """One recorded case: its json, its tensors as float32 or int64, the model, and its training state.

    `state` holds the momentum copies ("momentum.vision...") and the queues ("queue.image").
    """

    def __init__(self, name: str, task: ModelKind, weights: str | None = None) -> None:
        self.json: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        io = load_file(GOLDEN / f"{name}.io.safetensors")
        self.io = {key: value.float() if value.is_floating_point() else value for key, value in io.items()}
        still: dict[str, Any] = {"heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
        loaded = load(
            GOLDEN / f"{weights or name}.weights.safetensors",
            config={"vision": {"heads": 4, "drop_path": 0.0}, "text": still},
            tokenizer=GOLDEN / ("vocab_grounding.txt" if name == "grounding" else "vocab.txt"),
            training=True,
        )
        assert loaded.config.task == task
        self.model: Any = loaded.model.train()
        self.state = loaded.training
        self.names = table(loaded.family, task)

    def ours(self, theirs: str) -> str:
        """Our name of a recorded tensor."""
        target = self.names.ours(theirs)
        assert target is not None, theirs
        return target[1]

    def check_gradients(self, tolerance: float = 1e-4) -> None:
        """Every recorded gradient norm and tensor is that of our parameter; no other parameter has a gradient."""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norms = {self.ours(name): norm for name, norm in self.json["grad_norms"].items()}
        assert norms.keys() == gradients.keys()
        for name, norm in norms.items():
            allowed = max(tolerance, 1e-5 * norm)  # recorded norms of 200 are 9e-4 off double precision themselves
            assert abs(gradients[name].norm().item() - norm) < allowed, f"{name}: recorded {norm}"
        for key, tensor in self.io.items():
            if key.startswith("grad."):
                gradient = gradients[self.ours(key.removeprefix("grad."))]
                torch.testing.assert_close(gradient, tensor, atol=tolerance, rtol=0, msg=key)


PAD, CLS, SEP, DEC, ENC = 0, 1, 2, 3, 4


def toy(task: ModelKind, **changes: Any) -> Any:
    """A model of a few thousand parameters for 32 x 32 images, without dropout, its weights large enough to matter."""
    config = ModelConfig(
        task=task,
        vision=VisionConfig(image_size=32, width=24, depth=1, heads=2, mlp_width=48),
        text=TextConfig(
            vocab_size=60, width=24, depth=2, heads=2, mlp_width=48, max_positions=48, memory_width=24,
            dropout=0.0, attention_dropout=0.0, merge_from=1,
            pad_id=PAD, cls_id=CLS, sep_id=SEP, dec_id=DEC, enc_id=ENC,
        ),
        embed_width=16,
        **changes,
    )  # fmt: skip
    model = build_model(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and name != "temperature":
                parameter.normal_(std=0.2)
    return model


def texts(rows: Iterable[Iterable[int]], first_id: int, length: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of the rows, each behind `first` and before [SEP], padded to the longest or `length`."""
    rows_of_ids = [[first_id, *row, SEP] for row in rows]
    longest = max(length, *(len(row) for row in rows_of_ids))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows_of_ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows_of_ids])
    return ids, mask


def alone(ids: Tensor, mask: Tensor, row: int) -> Tensor:
    """One text (1, t) without its padding."""
    return ids[row : row + 1, : int(mask[row].sum())]


def images(count: int) -> Tensor:
    """Return noise, different for each image."""
    return torch.randn(count, 3, 32, 32)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter that the loss reaches."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, values, strict=True) if g is not None}


def assert_same(ours: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal names, equal values."""
    assert ours.keys() == plain.keys()
    for name in ours:
        gap = (ours[name] - plain[name]).abs().max().item()
        assert gap <= tolerance * max(1.0, plain[name].abs().max().item()), f"{name} differs by {gap}"
