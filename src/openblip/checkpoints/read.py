"""From a checkpoint of any family to a model: strict, on the first try, and with every liberty reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.checkpoints import bundle, hub, published, sizes
from openblip.checkpoints.fit import Renamed, check, fits, rename
from openblip.checkpoints.layouts import Family, Table, hub_config, nearest
from openblip.checkpoints.storage import INDEX, PICKLE, SAFETENSORS, Stored, read_json, read_stored
from openblip.errors import CheckpointError, ConfigError, InputError
from openblip.model.build import build
from openblip.model.config import MODEL_KINDS, ModelConfig, ModelKind, TextConfig
from openblip.model.vision import resize_positions
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer


@dataclass
class Loaded:
    """A checkpoint, ready for use.

    ``prompt`` is the checkpoint's own ("" for none, ``None`` for a task without one); ``notes`` tell everything that
    was derived, dropped, resized or overruled; ``training`` is the training state beside the model, if it was asked
    for, in the names of our momentum twin ("momentum.vision.norm.weight") and queues ("queue.image").
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
) -> Loaded:
    """Load a hub folder, a ``.pth`` of any family, a lone weight file, or one task of a bundle.

    ``config``: a whole configuration, or only the values to change, as
    ``{"text": {"heads": 4}, "vision": {"heads": 4}, "image_size": 480}``. Another image size resizes the position
    embeddings. ``tokenizer``: one, a vocabulary file or a folder; ``None`` takes the folder's own, or bert-base-uncased
    beside a ``.pth``; ``False`` does without. ``image``: how pictures are prepared, in place of what the folder's
    processor says. ``published_eps``: whether a published Salesforce checkpoint is run as it was trained or as its
    ``config.json`` says (:func:`hub_config.read_config`). ``dtype``: weights are converted to it, whatever they were
    stored in. ``training``: keep momentum copies and queues.

    The model is in evaluation mode. Raises :class:`CheckpointError` for anything missing, unknown or misshapen.
    """
    if task is not None and task not in MODEL_KINDS:
        raise InputError(f"unknown task {task!r}; one of {', '.join(MODEL_KINDS)}")
    found = examine(Path(path), task, config, published_eps)
    place, described = found.stored.path, found.described
    model, notes = found.hold_to(described.config, keeps_training=training)
    vocabulary = _tokenizer(tokenizer, place, found.layout, described.config.text, stated=found.stated)
    settled = _with_tokens(described.config, vocabulary, place, stated=found.stated)
    if settled != described.config:  # the same shapes, but modules keep their configuration
        model = build(settled, device="meta")
    _fill(model, found.renamed, settled, described.temperature, dtype)
    pictures, image_notes = _image_settings(place, settled, image)
    return Loaded(
        model=model.eval(),
        config=settled,
        tokenizer=vocabulary,
        image=pictures,
        prompt=described.prompt,
        family=_family(found.layout, found.stored),
        source=str(place),
        notes=(*described.notes, *notes, *image_notes),
        training=found.renamed.training if training else {},
    )


@dataclass
class Examined:
    """A checkpoint that is read and recognised, but not yet held to a model."""

    stored: Stored
    layout: Table
    renamed: Renamed
    described: hub_config.Described
    stated: bool  # whether a config.json says what it is
    resized: bool  # whether the caller chose the image size

    def hold_to(self, config: ModelConfig, *, keeps_training: bool = False) -> tuple[nn.Module, list[str]]:
        """The empty model of ``config``, if the tensors are exactly its own, and what had to be done for that."""
        model = build(config, device="meta")
        notes = _resize(self.renamed, config) if self.resized else []
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return model, notes + check(self.renamed, config, wanted, keeps_training=keeps_training)


def examine(
    path: Path,
    task: ModelKind | None = None,
    config: ModelConfig | Mapping[str, Any] | None = None,
    published_eps: bool = True,
) -> Examined:
    """Read a checkpoint, find its layout, and settle its configuration; arguments as for :func:`load`."""
    place = locate(path, task)
    stored = read_stored(place)
    raw = read_json(place / "config.json") if place.is_dir() else None
    layout = identify(stored, raw, task)
    renamed = rename(stored.tensors, layout, str(place))
    described = _describe(stored, raw, renamed, config, published_eps)
    return Examined(stored, layout, renamed, described, raw is not None, _size_given(config))


# --- what it is ---------------------------------------------------------------------------------------------------


def locate(path: Path, task: ModelKind | None = None) -> Path:
    """The file or folder to read: a bundle's member for ``task``, or the folder of a weight file named inside it."""
    path = path.expanduser().absolute()
    if path.name == bundle.FILE or (path / bundle.FILE).is_file():
        models = bundle.read(path)
        if task is None:
            raise CheckpointError(f"{path} is a bundle of {', '.join(models.models)}: say which, with task=...")
        return models.locate(task)
    inside = path.name in (SAFETENSORS, PICKLE, SAFETENSORS + INDEX, PICKLE + INDEX, "config.json")
    return path.parent if inside and (path.parent / "config.json").is_file() else path


def identify(stored: Stored, raw: Mapping[str, Any] | None = None, task: ModelKind | None = None) -> Table:
    """The layout of a checkpoint: that of the wanted task, else of the one its configuration or its names tell."""
    if not stored.tensors:
        raise CheckpointError(f"{stored.path} holds no tensors")
    family: Family | None = None
    if raw is not None:
        family = "hub"
        try:
            stated = hub_config.stated_task(raw)
        except CheckpointError as error:
            raise CheckpointError(f"{stored.path}: {error}") from error
        if task is not None and stated is not None and task != stated:
            raise CheckpointError(
                f"{stored.path} is not for {task!r}: its config.json says {stated!r}. {fits(stored.tensors, task)}"
            )
        task = task or stated
    best, distance = nearest(stored.tensors, family, task)
    if task is None and distance * 2 > len(stored.tensors):
        raise CheckpointError(f"{stored.path} does not fit. {fits(stored.tensors)}")
    return best


def _family(layout: Table, stored: Stored) -> Family:
    """Salesforce's two libraries share a layout; a file's name, its pointer's name or its other entries tell which."""
    if layout.family not in ("salesforce", "lavis"):
        return cast(Family, layout.family)
    if (known := published.identify(stored.path)) is not None and known.family in ("salesforce", "lavis"):
        return known.family
    if "ptr_queue" in stored.tensors:
        return "salesforce"
    settings = stored.beside.get("config")
    of_lavis = "scaler" in stored.beside or (isinstance(settings, Mapping) and "run" in settings)
    return "lavis" if of_lavis or (layout.task == "retrieval" and "queue_ptr" in stored.tensors) else "salesforce"


# --- its configuration --------------------------------------------------------------------------------------------


def _describe(
    stored: Stored,
    raw: Mapping[str, Any] | None,
    renamed: Renamed,
    config: ModelConfig | Mapping[str, Any] | None,
    published_eps: bool,
) -> hub_config.Described:
    task = cast(ModelKind, renamed.table.task)
    given = {} if config is None or isinstance(config, ModelConfig) else config
    if raw is not None:
        known = published.identify(stored.path) if published_eps else None
        parent = raw.get("_name_or_path")
        tuned_from = published.find(parent) if published_eps and isinstance(parent, str) else None
        try:
            described = hub_config.read_config(raw, task, known, tuned_from=tuned_from)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{stored.path}: {error}") from error
    else:
        prompt = _trained_prompt(stored) if task == "caption" else None
        described = hub_config.Described(_from_shapes(stored, renamed, config, given), prompt, None, ())
    if isinstance(config, ModelConfig):
        if config.task != task:
            raise CheckpointError(f"the configuration is for {config.task!r}, but {stored.path} is for {task!r}")
        return dataclasses.replace(described, config=config)
    return dataclasses.replace(described, config=sizes.apply(described.config, given))


def _from_shapes(
    stored: Stored, renamed: Renamed, config: ModelConfig | Mapping[str, Any] | None, given: Mapping[str, Any]
) -> ModelConfig:
    if isinstance(config, ModelConfig):
        return config
    task = cast(ModelKind, renamed.table.task)
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()}
    told = _told(stored, renamed)
    try:
        return sizes.from_shapes(task, shapes, given, **told)
    except sizes.Untold as error:
        name = renamed.name(error.name)
        if error.shape is None:
            raise renamed.complaint_without(name) from None
        raise CheckpointError(f"{stored.path}: {name} has the shape {error.shape}, which no BLIP model has") from None


def _told(stored: Stored, renamed: Renamed) -> dict[str, Any]:
    """What a ``.pth`` says about its model other than by the shapes of weights."""
    told: dict[str, Any] = {}
    constants = {rule: tensor for _, _, rule, tensor in renamed.constants}
    if (boxes := constants.get("=box_tokens")) is not None and boxes.numel():
        told |= {"box_start_id": int(boxes.flatten()[0]) - 1, "box_bins": boxes.numel() - 1}
    if renamed.table.family in ("salesforce", "lavis"):
        # Drop path is a training setting: 0.1 for VQA, NLVR2 and ViT-L in those libraries, else none.
        large = (
            renamed.tensors["vision.cls_token"].shape[-1] >= 1024 if "vision.cls_token" in renamed.tensors else False
        )
        told["drop_path"] = 0.1 if large or renamed.table.task in ("vqa", "nlvr") else 0.0
    return told


def _trained_prompt(stored: Stored) -> str:
    """The prompt in the training settings that lie beside the weights, else that of the published captioners."""
    settings = stored.beside.get("config")
    for place in (settings, settings.get("model") if isinstance(settings, Mapping) else None):
        if isinstance(place, Mapping) and isinstance(place.get("prompt"), str):
            return cast(str, place["prompt"])
    return hub_config.DEFAULT_PROMPT


def _size_given(config: ModelConfig | Mapping[str, Any] | None) -> bool:
    if config is None or isinstance(config, ModelConfig):
        return config is not None
    return "image_size" in config or "image_size" in config.get("vision", {})


# --- vocabulary and pictures --------------------------------------------------------------------------------------


def _tokenizer(
    given: Tokenizer | str | Path | bool | None, place: Path, layout: Table, text: TextConfig, *, stated: bool
) -> Tokenizer | None:
    """The tokenizer of a checkpoint. Where its files lack [DEC] and [ENC], a stated configuration tells their ids."""
    if given is False or layout.task == "vision":
        return None
    if isinstance(given, Tokenizer):
        return given
    ids = {"dec_id": text.dec_id, "enc_id": text.enc_id} if stated else {}
    if isinstance(given, str | Path):
        return Tokenizer.load(given, **ids)
    if place.is_dir():
        has_one = any((place / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        return Tokenizer.from_folder(place, **ids) if has_one else None
    return Tokenizer.from_vocab(hub.bert_vocabulary())


def _with_tokens(config: ModelConfig, tokenizer: Tokenizer | None, place: Path, *, stated: bool) -> ModelConfig:
    """``config`` with the special tokens of the tokenizer, which must fit the word embedding."""
    if tokenizer is None:
        return config
    rows, size = config.text.vocab_size, tokenizer.vocab_size
    if size > rows or (size != rows and not stated):
        raise CheckpointError(
            f"{place} has word embeddings for {rows} tokens, but the vocabulary has {size} with [DEC] and [ENC]: give "
            "the vocabulary that the model was trained with, tokenizer=..."
        )
    text = dataclasses.replace(
        config.text,
        pad_id=tokenizer.pad_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        dec_id=tokenizer.dec_id,
        enc_id=tokenizer.enc_id,
    )
    return dataclasses.replace(config, text=text)


def _image_settings(place: Path, config: ModelConfig, given: ImageSettings | None) -> tuple[ImageSettings, list[str]]:
    """How pictures are prepared: as given or as the folder's processor says, at the size that the model reads."""
    size = config.vision.image_size
    file = _processor_file(place)
    if given is None and file is None:
        return ImageSettings(size=size), []
    try:
        settings = given or ImageSettings.from_processor_config(read_json(cast(Path, file)))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}. To prepare pictures in another way, give image=...") from error
    if settings.size == size or config.task == "text":
        return settings, []
    source = file.name if given is None and file else "image="
    note = f"{source} says {settings.size} pixels a side; the model reads {size}, which counts"
    return dataclasses.replace(settings, size=size), [note]


def _processor_file(place: Path) -> Path | None:
    """The file that says how pictures are prepared; a ``processor_config.json`` of before 5.x speaks of text alone."""
    combined, image = place / "processor_config.json", place / "preprocessor_config.json"
    if combined.is_file() and (not image.is_file() or "image_processor" in read_json(combined)):
        return combined
    return image if image.is_file() else None


# --- its tensors --------------------------------------------------------------------------------------------------


def _resize(renamed: Renamed, config: ModelConfig) -> list[str]:
    """Fit stored position embeddings, and their momentum twins, to the image size that was asked for."""
    grid = config.vision.grid
    notes = []
    for place in (renamed.tensors, renamed.training):
        for name in ("vision.pos_embed", "pos_embed", "momentum.vision.pos_embed"):
            if name in place and place[name].ndim == 3 and place[name].shape[1] != config.vision.tokens:
                notes.append(
                    f"resized {renamed.name(name)} from {place[name].shape[1]} to {config.vision.tokens} positions"
                )
                place[name] = resize_positions(place[name], grid, grid)
    return notes


def _fill(
    model: nn.Module, renamed: Renamed, config: ModelConfig, temperature: float | None, dtype: torch.dtype
) -> None:
    """Put the tensors in place of the model's empty ones, without a copy where type and layout are right already."""
    tensors = dict(renamed.tensors)
    if config.task == "retrieval" and "temperature" not in tensors:
        tensors["temperature"] = torch.tensor(0.07 if temperature is None else temperature)
    converted = {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(converted, strict=True, assign=True)
