"""Save a model as a checkpoint of any family that has its kind, completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.containers import write_pickle, write_safetensors
from openblip.checkpoints.folder import CONFIG, GENERATION_CONFIG, INDEX, PICKLE, SAFETENSORS, SHARED
from openblip.checkpoints.layouts import Family, Table, hub_config, table
from openblip.checkpoints.match import compute_constant
from openblip.checkpoints.read import LoadedModel
from openblip.confidence import Confidence
from openblip.errors import CheckpointError, InputError
from openblip.generation import GenerationDefaults
from openblip.io import atomic
from openblip.model.config import ModelConfig
from openblip.model.text import TextTransformer
from openblip.model.vision import VisionTransformer
from openblip.preprocess.settings import ImageSettings

if TYPE_CHECKING:
    from openblip.preprocess.text import Tokenizer

_CONTAINER: Mapping[Family, str] = {"salesforce": "model", "lavis": "model", "mmpretrain": "state_dict"}
_GENERATING = ("caption", "vqa")
# Files of an older checkpoint in the folder that would be loaded in place of the new ones.
_STALE = (SAFETENSORS + INDEX, PICKLE, PICKLE + INDEX, SHARED, "processor_config.json")


def save(
    model: LoadedModel | nn.Module,
    path: str | Path,
    *,
    to: Family = "hub",
    tokenizer: Tokenizer | None = None,
    image: ImageSettings | None = None,
    prompt: str | None = None,
    dtype: torch.dtype | None = None,
    training: Mapping[str, Tensor] | None = None,
    confidence: Confidence | None = None,
    generation: GenerationDefaults | None = None,
) -> Path:
    """Write a model as a hub folder, or as the `.pth` of another family.

    Args:
        model: The model.
        path: The folder (hub) or file (other families) to write.
        to: Family to write.
        tokenizer: Tokenizer to write into a hub folder. The default is the tokenizer of a `LoadedModel`.
        image: Image settings to write into a hub folder. The default is the settings of a `LoadedModel`.
        prompt: Default prompt to write into a hub folder. The default is the prompt of a `LoadedModel`, and "a
            picture of " for another captioner.
        dtype: Type to store floating-point tensors in.
        training: Momentum copies and queues under our names (see `LoadedModel`), which only a `.pth` can hold.
        confidence: Calibration of the captions, which only a hub folder can hold. The default is the calibration of a
            `LoadedModel`.
        generation: Decoding options to write into the hub folder of a captioner. The default is the options of a
            `LoadedModel`.

    Returns:
        The path that was written.

    Raises:
        CheckpointError: If the family has no model of this kind.
        InputError: If the model is not one of OpenBLIP, or the image settings do not fit it.
    """
    if isinstance(model, LoadedModel):
        tokenizer, image = tokenizer or model.tokenizer, image or model.image
        prompt = model.prompt if prompt is None else prompt
        training, confidence = training or model.training, confidence or model.confidence
        generation = generation or model.generation
        model = model.model
    config = config_of(model)
    layout = table(to, config.task)
    if config.vision.stem is not None and to != "hub":
        raise CheckpointError(
            f"the {to} family has no place for the CNN stem of this hybrid ViT; write it as a hub folder instead"
        )
    path = Path(path).expanduser()
    state = {name: _stored(tensor, dtype) for name, tensor in model.state_dict().items()}
    tensors = _named(state, layout) | _training(training or {}, layout, dtype)
    if to != "hub":
        write_pickle(path, {_CONTAINER[to]: _with_constants(tensors, layout, config)})
        return path
    if path.is_file():
        raise CheckpointError(f"a hub checkpoint must be a folder, got the file {path}")
    temperature = float(state["temperature"]) if config.task == "retrieval" else None
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    dtype_name = types.pop() if len(types) == 1 else "float32"
    description = hub_config.write_config(
        config, prompt=prompt, temperature=temperature, dtype=dtype_name, confidence=confidence
    )
    _write_folder(path, config, tensors, description, tokenizer, image, generation or GenerationDefaults())
    return path


def store_confidence(folder: Path, confidence: Confidence) -> None:
    """Store a calibration in the `config.json` of a captioner.

    Args:
        folder: The hub folder, written by OpenBLIP.
        confidence: The calibration.

    Raises:
        CheckpointError: If the folder is not a captioner that OpenBLIP wrote.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    ours = content.get("openblip") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or ours.get("task") != "caption":
        raise CheckpointError(
            f"{path} must be the configuration of a captioner that OpenBLIP wrote; see `openblip convert`"
        )
    ours["confidence"] = confidence.to_dict()
    hub_config.parse_config(content, "caption")
    atomic.write_json(path, content, sort_keys=True)


def config_of(model: nn.Module) -> ModelConfig:
    """Return the configuration of a model of OpenBLIP, or of a bare transformer.

    Args:
        model: The model.

    Returns:
        Its configuration.

    Raises:
        InputError: If the model is of another library.
    """
    if isinstance(model, VisionTransformer):
        return ModelConfig(task="vision", vision=model.config)
    if isinstance(model, TextTransformer):
        return ModelConfig(task="text", text=model.config)
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise InputError(f"the model must be one of OpenBLIP, got a {type(model).__name__}")
    return config


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else None)
    return tensor.contiguous()


def _named(state: Mapping[str, Tensor], layout: Table) -> dict[str, Tensor]:
    """Return tensors under the names of a layout. The `.pth` families store every repeat of a tensor, the hub none."""
    tensors: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        targets = layout.theirs(ours)
        if layout.family == "hub":
            targets = [target for target in targets if target[0].kind == "name"]
        if not targets and (layout.family != "hub" or ours != "temperature"):
            raise _no_name(ours, layout)
        tensors |= {theirs: tensor for _, theirs in targets}
    return tensors


def _training(training: Mapping[str, Tensor], layout: Table, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for ours, tensor in training.items():
        targets = [target for target in layout.theirs(ours) if target[0].training]
        if not targets:
            raise _no_name(ours, layout)
        tensors[targets[0][1]] = _stored(tensor, dtype)
    return tensors


def _no_name(ours: str, layout: Table) -> CheckpointError:
    return CheckpointError(f"the {layout.family} family has no name for {ours!r} of a model for {layout.task!r}")


def _with_constants(tensors: dict[str, Tensor], layout: Table, config: ModelConfig) -> dict[str, Tensor]:
    """Add the tensors that those libraries store although they are computed: position numbers, coordinate tokens."""
    twins = any(target and target[0].training for target in map(layout.ours, tensors))
    for group in layout.groups:
        if group.kind == "constant":
            for theirs, rule in group.names.items():
                if twins or "_m." not in theirs:
                    tensors[theirs] = compute_constant(rule, config)
    return tensors


def _write_folder(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    image: ImageSettings | None,
    generation: GenerationDefaults,
) -> None:
    with atomic.replace_folder(folder, final_file=CONFIG, stale=_STALE) as temporary:
        write_safetensors(temporary / SAFETENSORS, tensors)
        if config.task in _GENERATING:
            text = config.text
            ids = {"bos_token_id": text.dec_id, "eos_token_id": text.sep_id, "pad_token_id": text.pad_id}
            options = generation.to_dict() if config.task == "caption" else {}
            atomic.write_json(temporary / GENERATION_CONFIG, ids | options, sort_keys=True)
        if tokenizer is not None:
            tokenizer.save(temporary)
        if config.task != "text":
            settings = image or ImageSettings(size=config.vision.image_size)
            if settings.size != config.vision.image_size:
                raise InputError(
                    f"the image settings must have the {config.vision.image_size} pixels per side of the model, got "
                    f"{settings.size}"
                )
            atomic.write_json(temporary / "preprocessor_config.json", settings.to_processor_config(), sort_keys=True)
        atomic.write_json(temporary / CONFIG, description, sort_keys=True)
