"""Toy objectives and batches for the tests of the loop; a batch depends on epoch, step and process alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openblip.model.build import build
from openblip.model.captioner import Captioner
from openblip.model.config import ModelConfig
from openblip.model.pretrainer import Pretrainer
from openblip.training.objectives.captioning import Captioning, CaptioningBatch
from openblip.training.objectives.gathering import Gather
from openblip.training.objectives.pretraining import Pretraining, PretrainingBatch
from tests.toys import toy_config

WORDS = 100


def noisy(config: ModelConfig) -> ModelConfig:
    """The configuration with dropout and drop path, so that a run draws random numbers."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, drop_path=0.2),
        text=dataclasses.replace(config.text, dropout=0.1, attention_dropout=0.1),
    )


def toy_captioning(*, dropout: bool = False, **options: Any) -> Captioning:
    """A captioning objective around a toy model, the same at every call."""
    torch.manual_seed(7)
    config = toy_config("caption")
    model = build(noisy(config) if dropout else config)
    assert isinstance(model, Captioner)
    return Captioning(model, prompt_length=1, **options).train()


def toy_pretraining(*, dropout: bool = False, gather: Gather | None = None, **options: Any) -> Pretraining:
    """A pretraining objective around a toy model, the same at every call."""
    torch.manual_seed(8)
    config = toy_config("pretrain")
    model = build(noisy(config) if dropout else config)
    assert isinstance(model, Pretrainer)
    return Pretraining(model, **{"queue_size": 24, "gather": gather, **options}).train()


def texts(count: int, length: int, first: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of texts of 3 to ``length`` tokens, padded on the right."""
    ids = torch.randint(10, WORDS, (count, length), generator=generator)
    ids[:, 0] = first
    lengths = torch.randint(3, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return ids * mask, mask


@dataclass
class ToyLoader:
    """``steps_per_epoch`` batches of ``size`` pictures with one text each, for "caption" or "pretrain"."""

    kind: str = "caption"
    steps_per_epoch: int = 4
    size: int = 4
    rank: int = 0
    draws: bool = False  # whether it meddles with the global generator, as a loader must be free to

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        for step in range(start_step, self.steps_per_epoch):
            if self.draws:
                torch.rand(3 if start_step else 5)
            yield self.batch(epoch, step)

    def batch(self, epoch: int, step: int) -> Any:
        generator = torch.Generator().manual_seed(10_000 * epoch + 10 * step + self.rank)
        pixels = torch.randn(self.size, 3, 32, 32, generator=generator)
        ids, mask = texts(self.size, 8, 598 if self.kind == "caption" else 2, generator)
        if self.kind == "caption":
            return CaptioningBatch(pixels=pixels, ids=ids, mask=mask)
        return PretrainingBatch(pixels=pixels, ids=ids, mask=mask)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a module holds."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
