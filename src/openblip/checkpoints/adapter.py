"""LoRA adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`, with hub names.

PEFT loads an adapter on the `transformers` class of its base, and adapters trained with PEFT load here. The kind of the
model, and values that the classes of `transformers` lack, are in `openblip.json` next to the two files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openblip.checkpoints.folder import ADAPTER_CONFIG
from openblip.checkpoints.layouts import table
from openblip.errors import CheckpointError
from openblip.io import atomic
from openblip.model.config import ModelConfig, ModelKind

WEIGHTS, EXTRAS = "adapter_model.safetensors", "openblip.json"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")


@dataclass(frozen=True)
class LoraPair:
    """The matrices of one adapted linear layer, which add `scale * b @ a` to its weight.

    Attributes:
        a: Matrix (r, in).
        b: Matrix (out, r).
        scale: Factor of the product.
    """

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter as stored, with hub names.

    Attributes:
        base: Name or path of the model that the adapter was trained on.
        pairs: LoRA matrices by linear layer.
        tensors: Weights trained in full.
        source: Folder of the adapter.
        task: Kind of the model, if OpenBLIP wrote the adapter.
        scalars: Trained scalars that `transformers` lacks, by our names.
    """

    base: str
    pairs: Mapping[str, LoraPair]
    tensors: Mapping[str, Tensor]
    source: Path
    task: ModelKind | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that OpenBLIP or PEFT wrote.

    Args:
        folder: Folder with `adapter_config.json`.

    Returns:
        The adapter.

    Raises:
        CheckpointError: If a file is missing or damaged, or the adapter is not plain LoRA.
    """
    try:
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        extras = json.loads((folder / EXTRAS).read_text(encoding="utf-8")) if (folder / EXTRAS).is_file() else {}
        stored = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the adapter {folder} cannot be read: {error}") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise CheckpointError(f"{folder} must be a LoRA adapter without DoRA and biases; merge it with PEFT instead")
    halves: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        name = key.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(name):
            halves.setdefault(match["module"], {})[match["part"]] = tensor
        elif ".lora_" in name:
            raise CheckpointError(f"{folder}: {key} is not a weight of an adapted linear layer")
        else:
            tensors[re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", name)] = tensor
    pairs: dict[str, LoraPair] = {}
    for module, half in halves.items():
        if half.keys() != {"A", "B"}:
            raise CheckpointError(f"{folder}: {module} must have lora_A and lora_B, got one of them")
        pairs[module] = LoraPair(half["A"], half["B"], _scale(config, module, len(half["A"])))
    base = config.get("base_model_name_or_path") or ""
    return Adapter(base, pairs, tensors, folder, extras.get("task"), extras.get("scalars", {}))


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@torch.no_grad()
def load_adapter(model: nn.Module, adapter: Adapter | Path) -> None:
    """Add an adapter to the weights of its base model, in place.

    Args:
        model: The base model.
        adapter: The adapter, or its folder.

    Raises:
        CheckpointError: If the adapter cannot be read, or is of another model.
    """
    if isinstance(adapter, Path):
        adapter = read_adapter(adapter)
    state = model.state_dict()
    layout = table("hub", _config(model).task)
    for module, pair in adapter.pairs.items():
        weight = _find(state, layout.ours(f"{module}.weight"), adapter, module, (len(pair.b), pair.a.shape[1]))
        product = pair.scale * (pair.b.double() @ pair.a.double())
        weight.copy_((weight.double() + product.to(weight.device)).to(weight.dtype))
    for name, tensor in adapter.tensors.items():
        _find(state, layout.ours(name), adapter, name, tuple(tensor.shape)).copy_(tensor)
    for name, value in adapter.scalars.items():
        if name in state:
            state[name].fill_(value)


def _find(
    state: Mapping[str, Tensor], match: tuple[Any, str] | None, adapter: Adapter, name: str, shape: tuple[int, ...]
) -> Tensor:
    if match is None or match[1] not in state:
        raise CheckpointError(f"{adapter.source} is an adapter of another model: there is no {name}")
    tensor = state[match[1]]
    if tuple(tensor.shape) != shape:
        shapes = f"{shape}, got {tuple(tensor.shape)}"
        raise CheckpointError(f"{adapter.source} is an adapter of another model: {name} must have the shape {shapes}")
    return tensor


def write_adapter(
    folder: Path,
    model: nn.Module,
    pairs: Mapping[str, LoraPair],
    trained: Sequence[str],
    *,
    base: str,
    rank: int,
    alpha: float,
    dropout: float,
) -> Path:
    """Write an adapter that PEFT loads on the hub model of the base.

    PEFT replaces complete modules, so a weight trained in full is stored with all weights of its module.

    Args:
        folder: Folder to create, or whose files to replace.
        model: The base model in training; its state holds the weights under their plain names.
        pairs: LoRA matrices by linear layer, under our names.
        trained: Names of the weights trained in full.
        base: Name or path of the base model.
        rank: Rank of the matrices.
        alpha: `alpha / rank` is the scale of the matrices.
        dropout: Dropout in training.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the hub has no name for a layer.
    """
    layout = table("hub", _config(model).task)
    state = model.state_dict()

    def hub_name(name: str) -> str:
        names = layout.theirs(name)
        if not names:
            raise CheckpointError(f"the hub format has no name for {name}, so an adapter cannot hold it")
        return names[0][1]

    tensors: dict[str, Tensor] = {}
    target_modules: list[str] = []
    for name, pair in pairs.items():
        module = hub_name(f"{name}.weight").removesuffix(".weight")
        target_modules.append(module)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = pair.a
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = pair.b
    scalars = {name: float(state[name]) for name in trained if state[name].ndim == 0}
    modules = {hub_name(name).rpartition(".")[0] for name in trained if name not in scalars}
    for name, tensor in state.items():
        for _, stored_name in layout.theirs(name):
            if any(stored_name.startswith(f"{module}.") for module in modules):
                tensors[_PREFIX + stored_name] = tensor
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(target_modules),
        "modules_to_save": sorted(modules) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    with atomic.replace_folder(folder, final_file=ADAPTER_CONFIG) as temporary:
        contiguous = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary / WEIGHTS, metadata={"format": "pt"})
        atomic.write_json(temporary / EXTRAS, {"task": layout.task, "scalars": scalars})
        atomic.write_json(temporary / ADAPTER_CONFIG, config)
    return folder


def _config(model: nn.Module) -> ModelConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise CheckpointError(f"adapters need a model of OpenBLIP, got {type(model).__name__}")
    return config
