"""A complete run: from a recipe to a model in a folder. Every process that `torchrun` starts calls `run`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from openblip.checkpoints import read, write
from openblip.checkpoints.folder import BEST, MODEL, RECIPE
from openblip.data.problems import Report
from openblip.data.sources.base import Source, Stream
from openblip.data.tasks.caption import CaptionData
from openblip.errors import ConfigError
from openblip.heap import keep_freed_memory
from openblip.tasks import TASKS
from openblip.training.checkpointing import Checkpoints, average_weights
from openblip.training.config.optim import LoraSettings
from openblip.training.config.recipe import Recipe, check_same_run, read_recipe, write_recipe
from openblip.training.data import build_data, open_train_source, train_loader
from openblip.training.distillation import Distillation
from openblip.training.initial import InitialState, build_initial_state
from openblip.training.lora import add_lora, merge_lora, save_adapter
from openblip.training.objectives.base import Objective
from openblip.training.processes import ProcessGroupInfo, join_processes
from openblip.training.random_state import seed_everything
from openblip.training.reporters import JsonLinesReporter, LossCurveReporter, Reporter, TensorBoardReporter
from openblip.training.speed import compile_layers, matmul_precision, recompute_vision
from openblip.training.strategies import build_strategy
from openblip.training.teachers import load_teacher
from openblip.training.trainer import Evaluate, Evaluation, Progress, Trainer
from openblip.training.validation import Validator

LOG, CURVE = "log.jsonl", "loss.png"
ADAPTER, CHECKPOINTS, TENSORBOARD = "adapter", "checkpoints", "tensorboard"


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        model: Folder of the final model.
        progress: Position at which the run ended.
        report: Bad records that this process met.
        is_main: Whether this is the main process of the run.
    """

    model: Path
    progress: Progress
    report: Report
    is_main: bool


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    reporters: Sequence[Reporter] = (),
    evaluate: Evaluate | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Train as a recipe says.

    The recipe's folder then holds `model/` (a hub folder), `best/` if there is a metric, `adapter/` for LoRA, the log,
    the loss curve and checkpoints.

    Args:
        recipe: All settings of the run.
        resume: Continue the run in the recipe's folder, if there is one.
        reporters: Receive reports, next to the log.
        evaluate: A further evaluation, next to `Validator`.
        notify: Receives notes on where the weights come from.

    Returns:
        Folder, position and bad records.

    Raises:
        ConfigError: If settings are wrong, or the folder holds another run.
        CheckpointError: If a checkpoint cannot be used.
        InputError: If the data cannot be used, or an optional library is missing.
        TrainingError: If the loss is no longer finite.

    Examples:
        >>> from openblip.training.config import read_recipe
        >>> result = run(read_recipe("recipes/caption_coco_base.yaml", ["out=runs/coco"]))  # doctest: +SKIP
    """
    with join_processes(recipe.run.device, recipe.run.timeout_minutes) as group, ExitStack() as stack:
        _claim_folder(recipe, group, resume)
        seed_everything(recipe.seed)
        keep_freed_memory(max_bytes=2**31 - 1, pad=512 << 20)
        stack.enter_context(matmul_precision(recipe.run.matmul_precision))
        initial = build_initial_state(recipe)
        source = open_train_source(recipe.data)
        teacher = None
        if recipe.distill is not None:
            teacher = load_teacher(recipe.distill.teacher, TASKS[recipe.task].networks[0]).to(group.device)
        image = initial.image if teacher is None else teacher.image  # the student reduces the teacher's images
        data = build_data(recipe, initial.tokenizer, image, initial.prompt, train=True)
        objective_class: type[Objective[Any, Any, Any, Any]] = TASKS[recipe.task].objective.resolve()
        loader = train_loader(recipe, source, data, objective_class.batch_class, image, group)
        stack.callback(loader.close)
        freeze(initial.model, recipe.model.freeze)
        lora = _add_lora(recipe, initial)
        model = initial.model.to(group.device)
        objective = objective_class.from_settings(model, recipe.loss, data, group.gather).to(group.device)
        if isinstance(source, Source):
            objective.prepare(source[index].captions for index in range(len(source)))
        if teacher is not None and recipe.distill is not None:
            prompt_length = data.prompt_length if isinstance(data, CaptionData) else 0
            distillation = Distillation(
                teacher,
                recipe.distill,
                image=initial.image,
                student=objective.model,
                tokenizer=initial.tokenizer,
                prompt_length=prompt_length,
            )
            distillation.to(group.device).attach(objective)
        if recipe.run.recompute_blocks:
            recompute_vision(objective.model, recipe.run.recompute_blocks)
        if recipe.run.compile:
            compile_layers(objective.model)
        strategy = build_strategy(objective, group, recipe.run.strategy)
        saver = ModelSaver(recipe, initial, lora)
        if group.is_main:
            for note in initial.notes:
                notify(note)
        trainer = Trainer(
            strategy,
            loader,
            recipe.run,
            recipe.evaluate,
            epochs=recipe.epochs,
            seed=recipe.seed,
            accumulate=recipe.accumulation(group.world_size),
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            checkpoints=Checkpoints(recipe.folder / CHECKPOINTS, recipe.run.keep_checkpoints),
            evaluate=_build_evaluation(recipe, initial, source, group, evaluate),
            keep_best=lambda model: saver.save(model, recipe.folder / BEST),
            reporters=[*_build_reporters(recipe), *reporters] if group.is_main else [],
        )
        progress = trainer.run(resume=resume)
        with strategy.full_model() as final_model:
            if group.is_main:
                saver.save_final(final_model, trainer.checkpoints)
        group.barrier()  # no process ends before everything is written
        return RunResult(recipe.folder / MODEL, progress, loader.report, group.is_main)


def _claim_folder(recipe: Recipe, group: ProcessGroupInfo, resume: bool) -> None:
    """Write the recipe into the folder of the run; raise `ConfigError` if the folder holds another run."""
    problem = ""
    if group.is_main:
        folder = recipe.folder
        has_run = Checkpoints(folder / CHECKPOINTS).latest() is not None
        try:
            if has_run and not resume:
                raise ConfigError(f"{folder} already holds a run: pass --resume (resume=True), or set another out")
            if has_run and (folder / RECIPE).is_file():
                check_same_run(read_recipe(folder / RECIPE), recipe)
            write_recipe(recipe, folder / RECIPE)
        except ConfigError as error:
            problem = str(error)
    if problem := group.broadcast(problem):
        raise ConfigError(problem)


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Exclude parts of a model from training.

    Args:
        model: The model.
        parts: Names of modules or parameters.

    Raises:
        ConfigError: If the model does not have a part.
    """
    for part in parts:
        names = [name for name, _ in model.named_parameters() if name == part or name.startswith(f"{part}.")]
        if not names:
            raise ConfigError(f"model.freeze must name parts of the model, got {part}")
        for name in names:
            model.get_parameter(name).requires_grad_(False)


def _add_lora(recipe: Recipe, initial: InitialState) -> LoraSettings | None:
    """Add adapters to the model if the recipe asks for them; modules with new weights are trained in full."""
    if recipe.lora is None:
        return None
    parameters = dict(initial.model.named_parameters())
    new_modules = [name.rpartition(".")[0] or name for name in initial.new_weights if name in parameters]
    lora = replace(recipe.lora, modules_to_save=tuple(dict.fromkeys((*recipe.lora.modules_to_save, *new_modules))))
    add_lora(initial.model, lora)
    return lora


@dataclass(frozen=True)
class ModelSaver:
    """Writes models as hub folders, with LoRA merged, and the adapter in a folder of its own.

    Attributes:
        recipe: The recipe of the run.
        initial: The start of the run.
        lora: Options of LoRA, if the run trains adapters.
    """

    recipe: Recipe
    initial: InitialState
    lora: LoraSettings | None

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model."""
        if self.lora is not None:
            adapter = folder.parent / (ADAPTER if folder.name == MODEL else f"{folder.name}-{ADAPTER}")
            save_adapter(model, adapter, self.lora, base=" ".join(self.recipe.start))
            model = merge_lora(copy.deepcopy(model))
        prompt = self.initial.prompt if self.recipe.task == "caption" else None
        initial = self.initial
        write.save(
            model,
            folder,
            tokenizer=initial.tokenizer,
            image=initial.image,
            prompt=prompt,
            generation=initial.generation,
        )

    def save_final(self, model: nn.Module, checkpoints: Checkpoints) -> None:
        """Write the final model: the last one, an average of checkpoints, or the best one."""
        folder, evaluate = self.recipe.folder, self.recipe.evaluate
        if evaluate.final == "best":
            write.save(read.load(folder / BEST), folder / MODEL)
            return
        if evaluate.final == "average":
            model = copy.deepcopy(model)
            files = checkpoints.files()[-evaluate.average_checkpoints :]
            model.load_state_dict(average_weights(files, "model."))
        self.save(model, folder / MODEL)


def _build_reporters(recipe: Recipe) -> list[Reporter]:
    folder = recipe.folder
    log = JsonLinesReporter(folder / LOG)
    if not recipe.run.charts:
        return [log]
    return [log, TensorBoardReporter(folder / TENSORBOARD), LossCurveReporter(folder / LOG, folder / CURVE)]


def _build_evaluation(
    recipe: Recipe,
    initial: InitialState,
    source: Source | Stream,
    group: ProcessGroupInfo,
    evaluate: Evaluate | None,
) -> Evaluate:
    """Return the evaluation of the main process; other processes take part in it without measuring."""
    if not group.is_main:
        return lambda model, progress: Evaluation()
    validator = Validator(recipe, initial.tokenizer, initial.image, initial.prompt, group, source)
    if evaluate is None:
        return validator

    def evaluate_both(model: nn.Module, progress: Progress) -> Evaluation:
        quick, extra = validator(model, progress), evaluate(model, progress)
        return Evaluation({**quick.metrics, **extra.metrics}, [*quick.samples, *extra.samples])

    return evaluate_both
