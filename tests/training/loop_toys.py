"""Toy objectives and batches for the tests of the loop; a batch depends on epoch, step and process alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openblip.model.build import build_model
from openblip.model.captioner import Captioner
from openblip.model.config import ModelConfig, ModelKind
from openblip.model.pretrainer import Pretrainer
from openblip.training.objectives.base import Objective
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.gather import Gather
from openblip.training.objectives.grounding import GroundingBatch, GroundingObjective
from openblip.training.objectives.nlvr import NlvrBatch, NlvrObjective
from openblip.training.objectives.pretrain import PretrainBatch, PretrainObjective
from openblip.training.objectives.retrieval import RetrievalBatch, RetrievalObjective
from openblip.training.objectives.vqa import VqaBatch, VqaObjective
from tests.toys import toy_config

WORDS = 100


def small(task: ModelKind, blocks: int = 1) -> ModelConfig:
    """The toy configuration with one text layer and few image blocks: every further one costs time in shards."""
    config = toy_config(task)
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=blocks),
        text=dataclasses.replace(config.text, depth=1, merge_from=0),
    )


def noisy(config: ModelConfig) -> ModelConfig:
    """The configuration with dropout and drop path, so that a run draws random numbers."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, drop_path=0.2),
        text=dataclasses.replace(config.text, dropout=0.1, attention_dropout=0.1),
    )


def toy_captioning(*, dropout: bool = False, **options: Any) -> CaptionObjective:
    """A captioning objective around a toy model, the same at every call."""
    torch.manual_seed(7)
    config = small("caption", blocks=2)
    model = build_model(noisy(config) if dropout else config)
    assert isinstance(model, Captioner)
    return CaptionObjective(model, prompt_length=1, **options).train()


def toy_pretraining(*, dropout: bool = False, gather: Gather | None = None, **options: Any) -> PretrainObjective:
    """A pretraining objective around a toy model, the same at every call."""
    torch.manual_seed(8)
    config = small("pretrain")
    model = build_model(noisy(config) if dropout else config)
    assert isinstance(model, Pretrainer)
    return PretrainObjective(model, **{"queue_size": 24, "gather": gather, **options}).train()


def texts(count: int, length: int, first_id: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of texts of 3 to `length` tokens, padded on the right."""
    ids = torch.randint(10, WORDS, (count, length), generator=generator)
    ids[:, 0] = first_id
    lengths = torch.randint(3, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return ids * mask, mask


@dataclass
class ToyLoader:
    """`steps_per_epoch` batches of `size` images with one text each, for "caption" or "pretrain"."""

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
            return CaptionBatch(pixels=pixels, ids=ids, mask=mask)
        return PretrainBatch(pixels=pixels, ids=ids, mask=mask)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a module holds."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def toy_objective(name: str, **options: Any) -> Objective[Any, Any, Any, Any]:
    """The objective of a task around a toy model, the same at every call; negatives are the hardest, not drawn."""
    torch.manual_seed(9)
    model: Any = build_model(dataclasses.replace(small(_MODELS[name]), box_bins=20, box_start_id=400))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    if name in ("pretrain", "retrieval"):
        options = {"queue_size": 24, "momentum": 0.9, "draw": hardest, **options}
    return OBJECTIVES[name](model, **options).train()


def toy_batch(name: str, size: int = 8) -> Any:
    """A batch of `size` images, texts padded to one length, which `half` can take apart."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(size, 3, 32, 32, generator=generator)
    ids, mask = texts(
        size, 8, {"caption": 598, "pretrain": 2, "retrieval": 2, "grounding": 2}.get(name, 599), generator
    )
    if name == "caption":
        return CaptionBatch(pixels=pixels, ids=ids, mask=mask)
    if name == "pretrain":
        return PretrainBatch(pixels=pixels, ids=ids, mask=mask)
    if name == "retrieval":
        owners = torch.tensor([0, 1, 2, 0, 3, 1, 4, 5])[:size]
        return RetrievalBatch(pixels=pixels, ids=ids, mask=mask, image_ids=owners)
    if name == "vqa":
        answer_ids, answer_mask = texts(2 * size, 5, 598, generator)
        owner, weights = torch.arange(size).repeat_interleave(2), torch.rand(2 * size, generator=generator)
        return VqaBatch(
            pixels=pixels,
            ids=ids,
            mask=mask,
            answer_ids=answer_ids,
            answer_mask=answer_mask,
            question_index=owner,
            weights=weights,
        )
    if name == "nlvr":
        second, targets = pixels.flip(0), torch.arange(size) % 2
        return NlvrBatch(left_pixels=pixels, right_pixels=second, ids=ids, mask=mask, labels=targets)
    corner = torch.rand(size, 2, generator=generator) * 10
    boxes = torch.cat([corner, corner + 1 + torch.rand(size, 2, generator=generator) * 20], 1)
    return GroundingBatch(pixels=pixels, ids=ids, mask=mask, boxes=boxes, sizes=torch.full((size, 2), 32.0))


def half(batch: Any, which: int) -> Any:
    """Return half 0 or 1 of every tensor of a batch; answers are numbered by the questions of their half."""
    parts = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    parts = {name: value.chunk(2)[which] for name, value in parts.items() if isinstance(value, Tensor)}
    if "question_index" in parts:
        parts["question_index"] = parts["question_index"] - parts["question_index"].min()
    return dataclasses.replace(batch, **parts)


def hardest(weights: Tensor) -> Tensor:
    """The draw that needs no dice."""
    return weights.argmax(1)


_MODELS: dict[str, ModelKind] = {
    "caption": "caption",
    "vqa": "vqa",
    "nlvr": "nlvr",
    "grounding": "grounding",
    "pretrain": "pretrain",
    "retrieval": "retrieval",
}
OBJECTIVES: dict[str, Callable[..., Objective[Any, Any, Any, Any]]] = {
    "caption": partial(CaptionObjective, prompt_length=1),
    "vqa": VqaObjective,
    "nlvr": NlvrObjective,
    "grounding": GroundingObjective,
    "pretrain": PretrainObjective,
    "retrieval": RetrievalObjective,
}
