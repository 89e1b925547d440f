"""A whole run: from a recipe to a model in a folder. Every process that ``torchrun`` starts calls :func:`run`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from openblip.checkpoints import bundle, hub, read, write
from openblip.checkpoints.initialize import initialize
from openblip.checkpoints.resolve import resolve
from openblip.data.problems import Report
from openblip.errors import CheckpointError, ConfigError
from openblip.model.build import build
from openblip.model.config import CAPTION_PROMPT, ModelConfig
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.training.config import MODELS, LoraSettings, Recipe, check_same_run, read_recipe, write_recipe
from openblip.training.distributed import Place, share, start
from openblip.training.loop import Evaluate, Evaluation, Progress, Trainer
from openblip.training.lora import add_lora, merge_lora, save_adapter
from openblip.training.reports import JsonLines, LossCurve, Reporter, TensorBoard
from openblip.training.speed import compile_layers, keep_memory, recompute_vision
from openblip.training.state import Checkpoints, average, seed_everything
from openblip.training.tasks import (
    PARTS,
    data_task,
    make_objective,
    open_train,
    step_arguments,
    train_loader,
)
from openblip.training.watch import Watch

RECIPE, LOG, CURVE = "recipe.yaml", "log.jsonl", "loss.png"
MODEL, BEST, ADAPTER, CHECKPOINTS, TENSORBOARD = "model", "best", "adapter", "checkpoints", "tensorboard"


@dataclass(frozen=True)
class Begun:
    """What a run begins with; ``notes`` say where the weights come from."""

    model: nn.Module
    tokenizer: Tokenizer
    image: ImageSettings
    prompt: str | None
    notes: tuple[str, ...]
    fresh: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What came of a run: the folder of the model, where it stopped, and the bad records this process met.

    ``first`` tells the first of several processes, which is the one to speak.
    """

    model: Path
    progress: Progress
    report: Report
    first: bool


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    reporters: Sequence[Reporter] = (),
    evaluate: Evaluate | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Result:
    """Train as a recipe says; with ``resume``, go on with the run in its folder, if there is one.

    ``evaluate`` adds figures and samples to those of :class:`Watch`. The folder then holds ``model/`` (a hub folder),
    ``best/`` if there is a metric, ``adapter/`` of a LoRA run, the log, the loss curve, and checkpoints.
    """
    with start(recipe.run.device, recipe.run.timeout_minutes) as place, ExitStack() as stack:
        folder = recipe.folder
        _claim(recipe, folder, place, resume)
        seed_everything(recipe.seed)
        keep_memory()
        begun = begin(recipe)
        source = open_train(recipe.data)
        task = data_task(recipe, begun.tokenizer, begun.image, begun.prompt, train=True)
        loader = train_loader(recipe, source, task, begun.image, place)
        stack.callback(loader.close)
        lora = _lora(recipe, begun)
        objective = make_objective(recipe, begun.model.to(place.device), task, place.gather).to(place.device)
        _hasten(recipe, objective)
        parallel = share(objective, place, recipe.run.strategy, some_unused=PARTS[recipe.task].some_unused)
        saver = Saver(recipe, begun, lora)
        watch = _evaluation(recipe, begun, source, place, evaluate) if place.is_first else _nothing
        for note in begun.notes if place.is_first else ():
            notify(note)
        trainer = Trainer(
            parallel,
            loader,
            recipe.loop(place.size),
            place=place,
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            checkpoints=Checkpoints(folder / CHECKPOINTS, recipe.run.keep),
            arguments=step_arguments(recipe),
            evaluate=watch,
            keep_best=lambda model: saver.save(model, folder / BEST),
            reporters=[*_reporters(recipe, folder), *reporters] if place.is_first else [],
        )
        progress = trainer.run(resume=resume)
        with parallel.plain() as model:
            if place.is_first:
                _leave(recipe, model, saver, trainer.checkpoints, folder)
        place.agree(None)  # nobody leaves before all is written
        return Result(folder / MODEL, progress, loader.report, place.is_first)


def _claim(recipe: Recipe, folder: Path, place: Place, resume: bool) -> None:
    """Take the folder for this run, or find that it belongs to another."""
    problem = ""
    if place.is_first:
        begun = Checkpoints(folder / CHECKPOINTS).latest() is not None
        try:
            if begun and not resume:
                raise ConfigError(f"{folder} holds a run already: resume it, or give another out")
            if begun and (folder / RECIPE).is_file():
                check_same_run(read_recipe(folder / RECIPE), recipe)
            write_recipe(recipe, folder / RECIPE)
        except ConfigError as error:
            problem = str(error)
    if problem := place.agree(problem):
        raise ConfigError(problem)


# --- the model ----------------------------------------------------------------------------------------------------


def begin(recipe: Recipe) -> Begun:
    """The model that a run begins with, its vocabulary, and how it wants its pictures."""
    places = [_locate(name, recipe) for name in recipe.start]
    if recipe.model.size == "start":
        return _from_start(recipe, places)
    tokenizer = _tokenizer(recipe, places)
    config = _with_tokens(recipe.model.config(recipe.task), tokenizer)
    model = build(config)
    notes, fresh = _fill(model, places)
    prompt = CAPTION_PROMPT if recipe.data.prompt is None else recipe.data.prompt
    return Begun(model, tokenizer, ImageSettings(config.vision.image_size), prompt, notes, fresh)


def _from_start(recipe: Recipe, places: list[Path]) -> Begun:
    """A model of the sizes of the checkpoint that it starts from, with its vocabulary, and its prompt if it has one."""
    if len(places) != 1:
        raise ConfigError("start is one checkpoint, or model.size is base or large")
    source = read.load(places[0], tokenizer=recipe.tokenizer)
    if source.tokenizer is None:
        raise CheckpointError(f"{source.source} came without a vocabulary: give tokenizer")
    config = recipe.model.config(recipe.task, source.config)
    model = build(config)
    report = initialize(model, source)
    notes = (f"{source.source}: {report}", *source.notes)
    prompt = next(p for p in (recipe.data.prompt, source.prompt, CAPTION_PROMPT) if p is not None)
    image = replace(source.image, size=config.vision.image_size)
    return Begun(model, source.tokenizer, image, prompt, notes, tuple(report.fresh))


def _fill(model: nn.Module, places: list[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fill a model from several checkpoints, one after another; what happened, and what stayed fresh."""
    notes, fresh = [], set(model.state_dict())
    for place in places:
        report = initialize(model, place)
        notes.append(f"{place}: {report}")
        fresh -= report.derived.keys()
    return tuple(notes), tuple(sorted(fresh)) if places else ()


def _locate(name: str, recipe: Recipe) -> Path:
    found = bundle.find(name)
    return found.locate(MODELS[recipe.task]) if found is not None else resolve(name)


def _tokenizer(recipe: Recipe, places: list[Path]) -> Tokenizer:
    if recipe.tokenizer is not None:
        return Tokenizer.load(recipe.tokenizer)
    for place in places:
        if any((place / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            return Tokenizer.from_folder(place)
    return Tokenizer.from_vocab(hub.bert_vocabulary())


def _with_tokens(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "cls_id", "sep_id", "dec_id", "enc_id")}
    return replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size, **ids))


def _lora(recipe: Recipe, begun: Begun) -> LoraSettings | None:
    """Give the model corrections to learn, if asked for. What the start left fresh is trained whole then."""
    if recipe.lora is None:
        return None
    known = dict(begun.model.named_parameters())
    fresh = [name for name in begun.fresh if name in known]
    lora = replace(recipe.lora, also=tuple(dict.fromkeys((*recipe.lora.also, *fresh))))
    add_lora(begun.model, lora)
    return lora


def _hasten(recipe: Recipe, objective: nn.Module) -> None:
    """Recompute and compile what is trained; the momentum twin has been copied before."""
    model = cast(Any, objective).model
    if recipe.run.recompute:
        recompute_vision(model, recipe.run.recompute)
    if recipe.run.compile:
        compile_layers(model)


# --- what it leaves behind ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saver:
    """Writes models as hub folders, LoRA's corrections merged in, and beside them the adapter by itself."""

    recipe: Recipe
    begun: Begun
    lora: LoraSettings | None

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model."""
        if self.lora is not None:
            beside = folder.parent / (ADAPTER if folder.name == MODEL else f"{folder.name}-{ADAPTER}")
            save_adapter(model, beside, self.lora, base=" ".join(self.recipe.start))
            model = merge_lora(copy.deepcopy(model))
        prompt = self.begun.prompt if self.recipe.task == "caption" else None
        write.save(model, folder, tokenizer=self.begun.tokenizer, image=self.begun.image, prompt=prompt)


def _leave(recipe: Recipe, model: nn.Module, saver: Saver, checkpoints: Checkpoints, folder: Path) -> None:
    """Write the final model: the last, the average of the last checkpoints, or the best that was kept."""
    final = recipe.evaluate.final
    if final == "best":
        best = read.load(folder / BEST)
        write.save(best, folder / MODEL)
        return
    if final == "average":
        model = copy.deepcopy(model)
        model.load_state_dict(average(checkpoints.files()[-recipe.evaluate.average :], "model."))
    saver.save(model, folder / MODEL)


def _reporters(recipe: Recipe, folder: Path) -> list[Reporter]:
    log = JsonLines(folder / LOG)
    if not recipe.run.charts:
        return [log]
    return [log, TensorBoard(folder / TENSORBOARD), LossCurve(folder / LOG, folder / CURVE)]


def _evaluation(recipe: Recipe, begun: Begun, source: Any, place: Place, evaluate: Evaluate | None) -> Evaluate:
    watch = Watch(recipe, begun.tokenizer, begun.image, begun.prompt, place, source)
    if evaluate is None:
        return watch

    def both(model: nn.Module, progress: Progress) -> Evaluation:
        one, other = watch(model, progress), evaluate(model, progress)
        return Evaluation({**one.metrics, **other.metrics}, [*one.samples, *other.samples])

    return both


def _nothing(model: nn.Module, progress: Progress) -> Evaluation:
    return Evaluation()
