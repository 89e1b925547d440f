"""Load a checkpoint of any family: strict, with a note for everything that was derived, dropped or corrected.

The stages are `RawCheckpoint` (the content of the files), `MatchedCheckpoint` (tensors under our names), `ParsedConfig`
(its configuration) and `LoadedModel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip import tasks
from openblip.checkpoints import hub, published, sizes
from openblip.checkpoints.adapter import Adapter, load_adapter, read_adapter
from openblip.checkpoints.containers import READERS, read_weight_file
from openblip.checkpoints.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    PICKLE,
    SAFETENSORS,
    VOCABULARY_FILES,
    Bundle,
    ModelFolder,
    RawCheckpoint,
)
from openblip.checkpoints.layouts import TABLES, Family, Table, hub_config, nearest
from openblip.checkpoints.layouts.hub_config import ParsedConfig
from openblip.checkpoints.match import MatchedCheckpoint, check, describe_names, match
from openblip.checkpoints.resolve import resolve
from openblip.confidence import Confidence
from openblip.errors import CheckpointError, ConfigError
from openblip.generation import GenerationDefaults, parse_generation
from openblip.model.build import build_model
from openblip.model.config import CAPTION_PROMPT, MODEL_KINDS, ModelConfig, ModelKind
from openblip.model.vision import resize_positions
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer


@dataclass
class LoadedModel:
    """A checkpoint, ready for use.

    Attributes:
        model: The network, in evaluation mode.
        config: Its configuration.
        tokenizer: Its vocabulary, if it has one.
        image: How images are prepared for it.
        prompt: Its default prompt; "" for none, `None` for a model without one.
        family: Family of the checkpoint.
        source: Path of the checkpoint.
        notes: One note for everything that was derived, dropped, resized or corrected.
        training: Training state, under the names of our momentum twin ("momentum.vision.norm.weight") and queues
            ("queue.image"), if it was loaded.
        confidence: Calibration of the captions; `None` for a model without one, or with a configuration that differs
            from its folder's.
        generation: Decoding options that the folder of a captioner stores.
    """

    model: nn.Module
    config: ModelConfig
    tokenizer: Tokenizer | None
    image: ImageSettings
    prompt: str | None
    family: Family
    source: str
    notes: tuple[str, ...] = ()
    training: dict[str, Tensor] = field(default_factory=dict)
    confidence: Confidence | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)


def load(
    path: str | Path,
    *,
    task: ModelKind | None = None,
    config: ModelConfig | Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | str | Path | bool | None = None,
    image: ImageSettings | None = None,
    published_eps: bool = True,
    dtype: torch.dtype = torch.float32,
    training: bool = False,
) -> LoadedModel:
    """Load a hub folder, a `.pth` of any family, a weight file, one model of a bundle, or a LoRA adapter on its base.

    Args:
        path: The file or folder. An adapter in the format of PEFT names its base model, and is merged into it. The
            folder of a training run stands for its model.
        task: Kind of the model, if the file fits several or is a bundle.
        config: A complete configuration, or the values to change, such as
            `{"text": {"heads": 4}, "vision": {"heads": 4}, "image_size": 480}`. Another image size resizes the position
            embeddings.
        tokenizer: The tokenizer, or a vocabulary file or folder. The default is the folder's own, and bert-base-uncased
            for a `.pth`. `False` loads none.
        image: How images are prepared. The default is the folder's image processor.
        published_eps: Run a published Salesforce checkpoint as it was trained, not as its `config.json` says (see
            `parse_config`).
        dtype: Type to convert the weights to.
        training: Load momentum copies and queues.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: If something is missing, unknown or misshapen.
        InputError: If `task` is not a kind of model.
    """
    if task is not None and task not in MODEL_KINDS:
        tasks.check(task, MODEL_KINDS)
    path = Path(path).expanduser().absolute()
    if not (path / CONFIG).is_file():  # a bundle, a run, a file, an adapter
        path = find_model(path, task)
    if (path / ADAPTER_CONFIG).is_file():
        load_base = partial(
            load, config=config, tokenizer=tokenizer, image=image, published_eps=published_eps, dtype=dtype
        )
        return _load_adapted(read_adapter(path), task, load_base)
    raw = ModelFolder.open(path).read(READERS) if path.is_dir() else read_weight_file(path)
    matched, parsed = interpret(raw, task, config, published_eps)
    model = build_model(parsed.config, device="meta")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    notes = check(matched, parsed.config, shapes, keeps_training=training)
    vocabulary, model_config = _load_tokenizer(tokenizer, raw, parsed.config)
    if model_config != parsed.config:  # the same shapes, but modules keep their configuration
        model = build_model(model_config, device="meta")
    tensors = dict(matched.tensors)
    if model_config.task == "retrieval" and "temperature" not in tensors:
        tensors["temperature"] = torch.tensor(0.07 if parsed.temperature is None else parsed.temperature)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():  # no copy, if the type and the layout in memory are right
            tensors[name] = tensor.to(dtype).contiguous()
    model.load_state_dict(tensors, strict=True, assign=True)
    image_notes: tuple[str, ...] = ()
    size = model_config.vision.image_size
    try:
        settings = image or ImageSettings.from_folder(raw.settings, default_size=size)
    except ConfigError as error:
        raise CheckpointError(f"{raw.path}: {error}. To prepare images in another way, give image=...") from error
    if settings.size != size and model_config.task != "text":
        source = "image=" if image else "the image processor of the folder"
        image_notes = (f"{source} says {settings.size} pixels per side; the model needs {size}, which is used",)
        settings = dataclasses.replace(settings, size=size)
    generation = GenerationDefaults()
    if model_config.task == "caption":
        try:
            generation = parse_generation(raw.settings.get(GENERATION_CONFIG, {}))
        except ConfigError as error:
            raise CheckpointError(f"{raw.path}: {error}") from error
    return LoadedModel(
        model=model.eval(),
        config=model_config,
        tokenizer=vocabulary,
        image=settings,
        prompt=parsed.prompt,
        family="hub" if matched.table.family == "hub" else _family(matched.table, raw),
        source=str(raw.path),
        notes=(*parsed.notes, *notes, *image_notes),
        training=matched.training if training else {},
        confidence=None if config else parsed.confidence,
        generation=generation,
    )


def _load_adapted(adapter: Adapter, task: ModelKind | None, load_base: Callable[..., LoadedModel]) -> LoadedModel:
    """Load the base of an adapter and merge the adapter into it."""
    kind = task or adapter.task
    if kind is None and Bundle.find(adapter.base):
        raise CheckpointError(
            f"the base of {adapter.source} is the bundle {adapter.base}: choose a model with task=..."
        )
    loaded = load_base(resolve(adapter.base, kind), task=kind)
    load_adapter(loaded.model, adapter)
    notes = (*loaded.notes, f"the adapter {adapter.source} is merged into {adapter.base}")
    return dataclasses.replace(loaded, source=str(adapter.source), notes=notes, confidence=None)


def find_model(path: Path, task: ModelKind | None = None) -> Path:
    """Return the hub folder, adapter or weight file that a path stands for.

    Args:
        path: Also a bundle, the folder of a training run, or a file of a hub folder.
        task: The model of a bundle.

    Returns:
        The folder or file.

    Raises:
        CheckpointError: If it is a bundle and `task` is not given, or a training run without a model yet.
        UnsupportedTaskError: If a bundle has no model for the task.
    """
    if task is None and (bundle := Bundle.find(path)) is not None:
        raise CheckpointError(f"{path} is a bundle of {', '.join(bundle.models)}: choose one with task=...")
    path = resolve(path, task) if path.exists() else path
    is_part = path.name.startswith((SAFETENSORS, PICKLE, CONFIG)) and (path.parent / CONFIG).is_file()
    return path.parent if is_part else path


def interpret(
    raw: RawCheckpoint[Tensor],
    task: ModelKind | None = None,
    config: ModelConfig | Mapping[str, Any] | None = None,
    published_eps: bool = True,
) -> tuple[MatchedCheckpoint, ParsedConfig]:
    """Find the layout of a checkpoint, rename its tensors and parse its configuration.

    Args:
        raw: The content of the files.
        task: See [`load`][openblip.checkpoints.read.load].
        config: See [`load`][openblip.checkpoints.read.load].
        published_eps: See [`load`][openblip.checkpoints.read.load].

    Returns:
        The tensors under our names, not yet checked against a model, and the configuration.

    Raises:
        CheckpointError: If the checkpoint is not of the kind `task`, or its configuration is wrong.
        ConfigError: If `config` contradicts the checkpoint.
    """
    config_file = raw.settings.get(CONFIG)
    if not raw.tensors or (config_file is None and raw.path.is_dir()):
        content = CONFIG if raw.tensors else "tensors"
        raise CheckpointError(f"{raw.path} must hold {content}, got none: download or write it again")
    try:
        kind = hub_config.stated_kind(config_file) if config_file is not None else None
    except CheckpointError as error:
        raise CheckpointError(f"{raw.path}: {error}") from error
    if task is not None and kind is not None and task != kind:
        raise CheckpointError(
            f"{raw.path} must be for {task!r}, but its config.json says {kind!r}. {describe_names(raw.tensors, task)}"
        )
    layout = TABLES["hub"][kind] if kind is not None else _nearest_layout(raw, task)
    matched = match(raw.tensors, layout, str(raw.path))
    kind = cast(ModelKind, layout.task)
    if config_file is None:
        parsed = _derive_config(raw, matched, config)
    else:
        origin = tuned_from = None
        if published_eps and "openblip" not in config_file:
            origin, parent = published.identify(raw.path), config_file.get("_name_or_path")
            tuned_from = published.find(parent) if isinstance(parent, str) else None
        try:
            parsed = hub_config.parse_config(config_file, kind, origin, tuned_from=tuned_from)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{raw.path}: {error}") from error
    if isinstance(config, ModelConfig):
        if config.task != kind:
            raise CheckpointError(f"the configuration must be for {kind!r}, as {raw.path}, got {config.task!r}")
        parsed = dataclasses.replace(parsed, config=config)
    elif config:
        parsed = dataclasses.replace(parsed, config=sizes.override(parsed.config, config))
    if isinstance(config, ModelConfig) or (config and "image_size" in {**config, **config.get("vision", {})}):
        parsed = dataclasses.replace(parsed, notes=(*parsed.notes, *_resize_positions(matched, parsed.config)))
    return matched, parsed


def _nearest_layout(raw: RawCheckpoint[Tensor], task: ModelKind | None) -> Table:
    """Return the layout of a checkpoint that does not state its kind: the nearest one, of `task` if it is given."""
    layout, distance = nearest(raw.tensors, "hub" if raw.settings else None, task)
    if task is None and distance * 2 > len(raw.tensors):
        raise CheckpointError(f"{raw.path} does not fit. {describe_names(raw.tensors)}")
    return layout


def _derive_config(
    raw: RawCheckpoint[Tensor], matched: MatchedCheckpoint, config: ModelConfig | Mapping[str, Any] | None
) -> ParsedConfig:
    """Return the configuration of a file that has none, from the shapes and values of its tensors."""
    kind = cast(ModelKind, matched.table.task)
    prompt = _trained_prompt(raw) if kind == "caption" else None
    if isinstance(config, ModelConfig):
        return ParsedConfig(config, prompt)
    stored: dict[str, Any] = {}
    for constant in matched.constants:
        if constant.target == "=box_tokens" and constant.tensor.numel():
            stored["box_start_id"] = int(constant.tensor.flatten()[0]) - 1
            stored["box_bins"] = constant.tensor.numel() - 1
    if matched.table.family in ("salesforce", "lavis"):
        # Drop path is a training setting: 0.1 for VQA, NLVR2 and ViT-L in those libraries, otherwise none.
        token = matched.tensors.get("vision.cls_token")
        large = token is not None and token.shape[-1] >= 1024
        stored["drop_path"] = 0.1 if large or kind in ("vqa", "nlvr") else 0.0
    shapes = {name: tuple(tensor.shape) for name, tensor in matched.tensors.items()}
    try:
        return ParsedConfig(sizes.derive_config(kind, shapes, config or {}, **stored), prompt)
    except sizes.UnknownSizeError as error:
        name = matched.name(error.name)
        if error.shape is None:
            raise matched.error_without(name) from None
        raise CheckpointError(f"{raw.path}: no BLIP model has a {name} of the shape {error.shape}") from None


def _trained_prompt(raw: RawCheckpoint[Tensor]) -> str:
    """Return the prompt in the training settings of a pickle, or the prompt of the published captioners."""
    settings = raw.metadata.get("config")
    for section in (settings, settings.get("model") if isinstance(settings, Mapping) else None):
        if isinstance(section, Mapping) and isinstance(section.get("prompt"), str):
            return cast(str, section["prompt"])
    return CAPTION_PROMPT


def _resize_positions(matched: MatchedCheckpoint, config: ModelConfig) -> list[str]:
    """Fit stored position embeddings, and their momentum twins, to the caller's image size. Return notes."""
    grid, tokens = config.vision.grid, config.vision.tokens
    notes = []
    for state in (matched.tensors, matched.training):
        for name in ("vision.pos_embed", "pos_embed", "momentum.vision.pos_embed"):
            if name in state and state[name].ndim == 3 and state[name].shape[1] != tokens:
                notes.append(f"resized {matched.name(name)} from {state[name].shape[1]} to {tokens} positions")
                state[name] = resize_positions(state[name], grid, grid)
    return notes


def _load_tokenizer(
    tokenizer: Tokenizer | str | Path | bool | None, raw: RawCheckpoint[Tensor], config: ModelConfig
) -> tuple[Tokenizer | None, ModelConfig]:
    """Return the tokenizer, and the configuration with its special tokens, which must fit the word embedding.

    If the vocabulary files have no [DEC] and [ENC], the ids in `config.json` are used.
    """
    stated = CONFIG in raw.settings
    ids = {"dec_id": config.text.dec_id, "enc_id": config.text.enc_id} if stated else {}
    if tokenizer is False or config.task == "vision":
        return None, config
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.load(tokenizer, **ids)
    elif not isinstance(tokenizer, Tokenizer):
        if not raw.path.is_dir():
            tokenizer = Tokenizer.from_vocab(hub.bert_vocabulary())
        elif any((raw.path / name).is_file() for name in VOCABULARY_FILES):
            tokenizer = Tokenizer.from_folder(raw.path, **ids)
        else:
            return None, config
    rows, size = config.text.vocab_size, tokenizer.vocab_size
    if size > rows or (size != rows and not stated):
        raise CheckpointError(
            f"the vocabulary must have the {rows} tokens of the word embeddings in {raw.path}, got {size} with [DEC] "
            "and [ENC]: give the vocabulary that the model was trained with, tokenizer=..."
        )
    special = {name: getattr(tokenizer, name) for name in ("pad_id", "cls_id", "sep_id", "dec_id", "enc_id")}
    return tokenizer, dataclasses.replace(config, text=dataclasses.replace(config.text, **special))


def _family(layout: Table, raw: RawCheckpoint[Tensor]) -> Family:
    """Return the family. Salesforce's two libraries share a layout; the name or other entries of the file differ."""
    if layout.family not in ("salesforce", "lavis"):
        return cast(Family, layout.family)
    entry = published.identify(raw.path)
    if entry is not None and entry.family in ("salesforce", "lavis"):
        return entry.family
    if "ptr_queue" in raw.tensors:
        return "salesforce"
    settings = raw.metadata.get("config")
    by_lavis = "scaler" in raw.metadata or (isinstance(settings, Mapping) and "run" in settings)
    return "lavis" if by_lavis or (layout.task == "retrieval" and "queue_ptr" in raw.tensors) else "salesforce"
