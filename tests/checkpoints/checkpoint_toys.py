"""What the checkpoint tests share: toy models of every task with every number drawn, and the golden files' sizes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openblip.checkpoints.read import LoadedModel, load
from openblip.model.build import build_model
from openblip.model.config import ModelConfig, ModelKind, TextConfig, VisionConfig
from tests.conftest import GOLDEN

VOCABULARY = GOLDEN / "vocab.txt"

# golden file -> heads of both towers, vocabulary
_GOLDEN_HEADS = {"gradcam": 12}
HEADS = {"text": {"heads": 4}, "vision": {"heads": 4}}


def golden(name: str, **more: Any) -> LoadedModel:
    """A golden checkpoint, from its original key names."""
    config = {"text": {"heads": _GOLDEN_HEADS.get(name, 4)}, "vision": {"heads": 4}, **more.pop("config", {})}
    vocabulary = GOLDEN / ("vocab_grounding.txt" if name == "grounding" else "vocab.txt")
    return load(GOLDEN / f"{name}.weights.safetensors", config=config, tokenizer=vocabulary, **more)


def recorded(name: str) -> dict[str, Tensor]:
    """What the original implementation gave; pixels as float32."""
    tensors = load_file(GOLDEN / f"{name}.io.safetensors")
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}


def toy_config(task: ModelKind, *, memory_width: int | None = None) -> ModelConfig:
    """Widths that divide into heads of 64, all sizes different, so that nothing can be confused with anything else.

    The images' tokens are 128 wide and the text 64, but for grounding, where they must agree.
    """
    wide = 64 if task == "grounding" else 128
    text = TextConfig(
        vocab_size=600, width=64, depth=3, heads=1, mlp_width=80, max_positions=24, memory_width=wide, merge_from=2,
        dropout=0.1, attention_dropout=0.1, cls_id=2, sep_id=3, dec_id=598, enc_id=599,
    )  # fmt: skip
    vision = VisionConfig(image_size=48, patch_size=16, width=wide, depth=2, heads=wide // 64, mlp_width=96)
    return ModelConfig(
        task=task, vision=vision, text=text, embed_width=32, box_bins=40, box_start_id=500,
        decoder_memory_width=memory_width,
    )  # fmt: skip


@functools.cache
def toy_model(task: ModelKind, *, config: ModelConfig | None = None, seed: int = 0) -> nn.Module:
    """A model whose every tensor is drawn, so that no two are equal and none is at its default. Not to be changed."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config or toy_config(task)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=generator) * (0.5 if tensor.ndim < 2 else 0.15)
            tensor.copy_(drawn + 1.0 if "norm" in name and name.endswith("weight") else drawn)
            if name == "temperature":
                tensor.copy_(torch.tensor(0.0123))
    return model


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same numbers under the same names, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """A copy of a safetensors or ``.pth`` checkpoint after ``change`` was applied to its dict of tensors."""
    if source.suffix == ".safetensors":
        from safetensors.torch import save_file

        tensors = dict(load_file(source))
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, target, metadata={"format": "pt"})
        return target
    content = torch.load(source, weights_only=True)
    change(content.get("model") or content["state_dict"])
    torch.save(content, target)
    return target
