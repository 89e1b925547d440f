"""From a model to a checkpoint of any family that has its task: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.fit import constant
from openblip.checkpoints.layouts import Family, Table, hub_config, table
from openblip.checkpoints.read import Loaded
from openblip.checkpoints.storage import SAFETENSORS, replacing_folder, write_pickle, write_safetensors
from openblip.errors import CheckpointError, InputError
from openblip.model.config import ModelConfig
from openblip.model.text import TextTransformer
from openblip.model.vision import VisionTransformer
from openblip.preprocess.settings import ImageSettings

if TYPE_CHECKING:
    from openblip.preprocess.text import Tokenizer

_CONTAINER: Mapping[Family, str] = {"salesforce": "model", "lavis": "model", "mmpretrain": "state_dict"}
_GENERATING = ("caption", "vqa")
# What an older folder may hold that would speak for the new one: its shards, pickles and settings.
_STALE = ("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "processor_config.json")


def save(
    model: Loaded | nn.Module,
    path: str | Path,
    *,
    to: Family = "hub",
    tokenizer: Tokenizer | None = None,
    image: ImageSettings | None = None,
    prompt: str | None = None,
    dtype: torch.dtype | None = None,
    training: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model as a hub folder, or as the ``.pth`` of another family; the path that was written.

    ``tokenizer``, ``image`` and ``prompt`` are kept in a hub folder alone; for a :class:`Loaded` they default to its
    own. ``prompt=None`` means "a picture of " for a captioner. ``dtype``: store floating-point tensors so.
    ``training``: momentum copies and queues in our names (see :class:`Loaded`), which only a ``.pth`` can hold.

    Raises :class:`CheckpointError` for a task that the family does not have.
    """
    if isinstance(model, Loaded):
        tokenizer, image = tokenizer or model.tokenizer, image or model.image
        prompt = model.prompt if prompt is None else prompt
        training = training or model.training
        model = model.model
    config = config_of(model)
    layout = table(to, config.task)
    path = Path(path).expanduser()
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    tensors = _named(state, layout) | _training(training or {}, layout, dtype)
    if to != "hub":
        write_pickle(path, {_CONTAINER[to]: _with_constants(tensors, layout, config)})
        return path
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a hub checkpoint is a folder")
    temperature = float(state["temperature"]) if config.task == "retrieval" else None
    described = hub_config.write_config(config, prompt=prompt, temperature=temperature, dtype=_dtype_name(tensors))
    _write_folder(path, config, tensors, described, tokenizer, image)
    return path


def config_of(model: nn.Module) -> ModelConfig:
    """The configuration of a model of ours, a bare transformer included."""
    if isinstance(model, VisionTransformer):
        return ModelConfig(task="vision", vision=model.config)
    if isinstance(model, TextTransformer):
        return ModelConfig(task="text", text=model.config)
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise InputError(f"{type(model).__name__} is no model of OpenBLIP's, so it cannot be written as one")
    return config


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else None)
    return tensor.contiguous()


def _named(state: Mapping[str, Tensor], layout: Table) -> dict[str, Tensor]:
    """Their names for our tensors; the ``.pth`` families write every repeat of a tensor too, the hub none."""
    tensors: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        places = layout.theirs(ours)
        if layout.family == "hub":
            places = [place for place in places if place[0].kind == "name"]
            if not places and ours != "temperature":
                raise _no_name(ours, layout)
        elif not places:
            raise _no_name(ours, layout)
        tensors |= {theirs: tensor for _, theirs in places}
    return tensors


def _training(training: Mapping[str, Tensor], layout: Table, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for ours, tensor in training.items():
        places = [place for place in layout.theirs(ours) if place[0].training]
        if not places:
            raise _no_name(ours, layout)
        tensors[places[0][1]] = _stored(tensor, dtype)
    return tensors


def _no_name(ours: str, layout: Table) -> CheckpointError:
    return CheckpointError(f"the {layout.family} family has no name for {ours!r} of a model for {layout.task!r}")


def _with_constants(tensors: dict[str, Tensor], layout: Table, config: ModelConfig) -> dict[str, Tensor]:
    """What those libraries store although it is computed: position numbers and coordinate tokens."""
    twins = any(match and match[0].training for match in map(layout.ours, tensors))
    for group in layout.groups:
        if group.kind == "constant":
            for theirs, rule in group.names.items():
                if twins or "_m." not in theirs:
                    tensors[theirs] = constant(rule, config)
    return tensors


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else "float32"


def _write_folder(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    described: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    image: ImageSettings | None,
) -> None:
    with replacing_folder(folder, last="config.json", stale=_STALE) as fresh:
        write_safetensors(fresh / SAFETENSORS, tensors)
        if config.task in _GENERATING:
            text = config.text
            ids = {"bos_token_id": text.dec_id, "eos_token_id": text.sep_id, "pad_token_id": text.pad_id}
            _write_json(fresh / "generation_config.json", ids)
        if tokenizer is not None:
            tokenizer.save(fresh)
        if config.task != "text":
            settings = image or ImageSettings(size=config.vision.image_size)
            if settings.size != config.vision.image_size:
                raise InputError(
                    f"the image settings say {settings.size} pixels a side, the model reads {config.vision.image_size}"
                )
            _write_json(fresh / "preprocessor_config.json", settings.to_processor_config())
        _write_json(fresh / "config.json", described)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")
