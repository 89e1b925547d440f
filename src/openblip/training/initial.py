"""The model that a run starts with, and its tokenizer, image settings and prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from openblip.checkpoints import hub, read
from openblip.checkpoints.folder import VOCABULARY_FILES
from openblip.checkpoints.initialize import InitReport, initialize
from openblip.checkpoints.resolve import resolve
from openblip.errors import CheckpointError, ConfigError
from openblip.generation import GenerationDefaults
from openblip.model.build import build_model
from openblip.model.config import CAPTION_PROMPT
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TASKS
from openblip.training.config.recipe import Recipe


@dataclass(frozen=True)
class InitialState:
    """The start of a run.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        image: How images become pixels.
        prompt: Text that every caption starts with.
        notes: Where the weights come from.
        new_weights: Names of weights that no checkpoint provides.
        generation: Decoding options of captions to store with the model.
    """

    model: nn.Module
    tokenizer: Tokenizer
    image: ImageSettings
    prompt: str | None
    notes: tuple[str, ...]
    new_weights: tuple[str, ...]
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)


def build_initial_state(recipe: Recipe) -> InitialState:
    """Build the model of a recipe and fill it from its checkpoints.

    Args:
        recipe: The recipe.

    Returns:
        The model, ready to train.

    Raises:
        CheckpointError: If a checkpoint cannot be used.
        ConfigError: If the recipe has no size and not exactly one checkpoint.
    """
    kind = TASKS[recipe.task].networks[0]
    paths = [resolve(name, kind) for name in recipe.start]
    if recipe.model.size == "start":
        return _from_checkpoint(recipe, paths)
    tokenizer = _load_tokenizer(recipe, paths)
    config = recipe.model.build_config(kind, recipe.loss.published.drop_path)
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "cls_id", "sep_id", "dec_id", "enc_id")}
    config = replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size, **ids))
    model = build_model(config)
    notes, new_weights = [], set(model.state_dict())
    for name, path in zip(recipe.start, paths, strict=True):
        report = initialize(model, path)
        notes.append(_describe_start(name, str(path), "", report))
        new_weights -= report.derived.keys()
    prompt = CAPTION_PROMPT if recipe.data.prompt is None else recipe.data.prompt
    image = ImageSettings(config.vision.image_size)
    return InitialState(model, tokenizer, image, prompt, tuple(notes), tuple(sorted(new_weights)) if paths else ())


def _from_checkpoint(recipe: Recipe, paths: list[Path]) -> InitialState:
    """Build a model of the sizes of its checkpoint, with the checkpoint's tokenizer and prompt."""
    if len(paths) != 1:
        raise ConfigError(f"start must be one checkpoint unless model.size is base or large, got {len(paths)}")
    start = read.load(paths[0], tokenizer=recipe.tokenizer)
    if start.tokenizer is None:
        raise CheckpointError(f"{start.source} has no vocabulary: set tokenizer")
    kind = TASKS[recipe.task].networks[0]
    config = recipe.model.build_config(kind, recipe.loss.published.drop_path, start.config)
    model = build_model(config)
    report = initialize(model, start)
    prompt = next(p for p in (recipe.data.prompt, start.prompt, CAPTION_PROMPT) if p is not None)
    image = replace(start.image, size=config.vision.image_size)
    notes = [_describe_start(recipe.start[0], start.source, start.config.task, report)]
    notes += [note for note in start.notes if not note.startswith("not stored, derived")]  # as in every hub folder
    return InitialState(model, start.tokenizer, image, prompt, tuple(notes), tuple(report.fresh), start.generation)


def _describe_start(name: str, source: str, task: str, report: InitReport) -> str:
    """Return a note about the start of the run: the name, the model behind it, and its missing weights."""
    kind = f"{task} model" if task else "weights"
    where = "" if Path(name).expanduser().exists() else f" of {name}"
    return f"starts from the {kind}{where} ({source}): {report}"


def _load_tokenizer(recipe: Recipe, paths: list[Path]) -> Tokenizer:
    if recipe.tokenizer is not None:
        return Tokenizer.load(recipe.tokenizer)
    for path in paths:
        if any((path / name).is_file() for name in VOCABULARY_FILES):
            return Tokenizer.from_folder(path)
    return Tokenizer.from_vocab(hub.bert_vocabulary())
