"""The training loop, one for every task: batches go in, named losses come out.

A step consists of `accumulate` batches; the loader defines an epoch. After every epoch the model is evaluated, by a
function that the caller passes in, and a checkpoint is written. A killed run resumes from it bit for bit: position,
weights, momentum twin, queues, optimizer, loss scale, random generators of every process, and losses not yet reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openblip.errors import CheckpointError, ConfigError, TrainingError
from openblip.model.precision import DTYPES
from openblip.training.checkpointing import Checkpoints, read_state
from openblip.training.config.optim import AdamWSettings
from openblip.training.config.run import EvaluateSettings, RunSettings
from openblip.training.config.schedule import Schedule
from openblip.training.objectives.base import Batch
from openblip.training.optim import BackwardUpdates, build_adamw, full_optimizer_state, load_optimizer_state
from openblip.training.random_state import (
    get_random_state,
    preserve_random_state,
    seed_everything,
    set_random_state,
)
from openblip.training.reporters import Reporter
from openblip.training.sharding import clip_gradients
from openblip.training.strategies import ParallelStrategy, SingleProcess
from openblip.training.timing import LossMeter, Stopwatch

FORMAT = 1
_CPU = torch.device("cpu")


class BatchSource(Protocol):
    """Batches on the device, which depend only on the epoch and the position in it."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same for every process."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from number `start_step` on."""


@dataclass
class Progress:
    """The position of a run.

    Attributes:
        epoch: Epochs completed.
        batch: Batches used of the current epoch.
        step: Steps done in all.
        best: Best metric so far.
        evaluations_since_best: Evaluations after the best one.
        stopped: Whether early stopping has ended the run.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    evaluations_since_best: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: Metrics by name.
        samples: Rows to look at, such as captions of some images.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()


Evaluate = Callable[[nn.Module, Progress], Evaluation]


class Trainer:
    """A run of the training loop.

    Args:
        strategy: The objective and its distribution over processes.
        loader: Training batches.
        run: Precision, reports and checkpoints.
        evaluation: Times of the evaluations, and the metric.
        epochs: Passes over the data.
        seed: Seed of all random draws.
        accumulate: Batches per step.
        optimizer: Options of AdamW.
        schedule: Learning rate.
        checkpoints: Where to save.
        evaluate: Measures the full model in evaluation mode; called on the main process only.
        keep_best: Called with the model when its metric is the best so far.
        reporters: Receive reports on the main process.

    Raises:
        ConfigError: If an epoch has no batch.
    """

    def __init__(
        self,
        strategy: ParallelStrategy,
        loader: BatchSource,
        run: RunSettings,
        evaluation: EvaluateSettings,
        *,
        epochs: int = 1,
        seed: int = 42,
        accumulate: int = 1,
        optimizer: AdamWSettings,
        schedule: Schedule,
        checkpoints: Checkpoints,
        evaluate: Evaluate | None = None,
        keep_best: Callable[[nn.Module], None] | None = None,
        reporters: Sequence[Reporter] = (),
    ) -> None:
        self.strategy = strategy
        self.objective = strategy.objective
        self.group = strategy.group
        self.loader = loader
        self.run_settings = run
        self.evaluation = evaluation
        self.epochs, self.seed, self.accumulate = epochs, seed, accumulate
        self.schedule = schedule
        self.clip_norm = optimizer.clip_norm
        self.optimizer = build_adamw(self.objective, optimizer)
        self.scaler = torch.amp.GradScaler(self.group.device.type, enabled=run.precision == "fp16")
        # Without a step that needs all gradients at once: averages, sums over batches, norms and loss scales.
        self.updates: BackwardUpdates | None = None
        if type(strategy) is SingleProcess and accumulate == 1 and not self.clip_norm and not self.scaler.is_enabled():
            self.updates = BackwardUpdates(self.optimizer)
        self.checkpoints = checkpoints
        self.evaluate = evaluate
        self.keep_best = keep_best
        self.reporters = reporters if self.group.is_main else ()
        self.progress = Progress()
        self.losses = LossMeter()
        self.stopwatch = Stopwatch()
        self.steps_per_epoch = math.ceil(loader.steps_per_epoch / accumulate)
        if self.steps_per_epoch < 1:
            raise ConfigError("an epoch must have at least one batch; is the batch larger than the data?")

    def run(self, *, resume: bool = False) -> Progress:
        """Train to the end.

        Args:
            resume: Continue from the newest checkpoint, if there is any.

        Returns:
            The final position.

        Raises:
            TrainingError: If the loss is no longer finite.
            CheckpointError: If the checkpoint cannot be resumed.
        """
        seed_everything(self.seed + self.group.rank)
        if self.group.is_main:
            self.checkpoints.remove_partial()
        if resume and (newest := self.group.broadcast(self.checkpoints.latest())) is not None:
            self.restore(read_state(newest))
        for reporter in self.reporters:
            reporter.on_start(self.progress.step, self.epochs * self.steps_per_epoch, self.steps_per_epoch)
        self.objective.train()
        self.stopwatch.restart()
        while self.progress.epoch < self.epochs and not self.progress.stopped:
            self._train_epoch()
        for reporter in self.reporters:
            reporter.on_end()
        return self.progress

    def _train_epoch(self) -> None:
        progress, run, evaluation = self.progress, self.run_settings, self.evaluation
        for batches in self._steps_of_epoch():
            self._train_step(batches)
            progress.batch += len(batches)
            progress.step += 1
            for reporter in self.reporters:
                reporter.on_step(progress.step)
            if progress.batch < self.loader.steps_per_epoch:  # otherwise the end of the epoch does all this
                if _is_due(progress.step, run.log_every):
                    self._report()
                if _is_due(progress.step, evaluation.every_steps):
                    self._evaluate()
                if _is_due(progress.step, run.save_every):  # last, so that a resumed run repeats nothing above
                    self._save()
            if progress.stopped:
                break
        if self.losses.steps:
            self._report()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        is_final = progress.epoch == self.epochs and evaluation.every_epochs > 0
        by_epoch = is_final or _is_due(progress.epoch, evaluation.every_epochs)
        if not progress.stopped and (by_epoch or _is_due(progress.step, evaluation.every_steps)):
            self._evaluate()
        self._save()

    def _steps_of_epoch(self) -> Iterator[list[Batch]]:
        """Yield the batches of each step. Random draws of the loader do not change the draws of the training."""
        progress = self.progress
        if progress.batch >= self.loader.steps_per_epoch:
            return
        with preserve_random_state(_CPU):
            batches = iter(self.loader.epoch(progress.epoch, progress.batch))
        while True:
            with preserve_random_state(_CPU):
                step_batches = list(islice(batches, self.accumulate))
            if not step_batches:
                return
            yield step_batches

    def _train_step(self, batches: Sequence[Batch]) -> None:
        progress, batches_per_epoch = self.progress, self.loader.steps_per_epoch
        lr = self.schedule.rate(
            epoch=progress.epoch,
            step=progress.batch // self.accumulate,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.epochs,
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        batches_done = progress.epoch * batches_per_epoch + progress.batch
        arguments = self.objective.step_arguments(batches_done, batches_per_epoch)
        for i, batch in enumerate(batches):
            with self.strategy.accumulation(is_last_batch=i == len(batches) - 1):
                with self._autocast():
                    losses = self.strategy(batch, **arguments)
                    loss = total_loss(losses)
                with nullcontext() if self.updates is None else self.updates.during_backward():
                    torch.autograd.backward(self.scaler.scale(loss / len(batches)))
            self.losses.add(losses, loss, 1 / len(batches), batch.num_images)
        if self.updates is None:
            self._update_parameters()
        self.losses.steps += 1

    def _update_parameters(self) -> None:
        self.strategy.finish_backward()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.objective.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.run_settings.precision]
        return torch.autocast(self.group.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def _report(self) -> None:
        """Report the mean losses since the last report, over all processes."""
        progress = self.progress
        values = self.losses.mean(self.group)
        num_images = self.losses.num_images * self.group.world_size
        self.stopwatch.steps += self.losses.steps
        self.losses.reset()
        seconds = self.stopwatch.lap()
        if not all(map(math.isfinite, values.values())) and not self.scaler.is_enabled():
            raise TrainingError(
                f"the loss must be finite, got {values} at step {progress.step}; lower the learning rate, warm up, "
                "clip (optimizer.clip_norm), or train in fp32"
            )
        remaining_steps = self.epochs * self.steps_per_epoch - progress.step
        record = {
            "step": progress.step,
            "epoch": progress.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            **values,
            "images_per_second": round(num_images / max(seconds, 1e-9), 2),
            "eta_seconds": round(self.stopwatch.seconds_per_step() * remaining_steps),
        }
        for reporter in self.reporters:
            reporter.on_losses(record)

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        progress, metric = self.progress, self.evaluation.metric
        paused, preserved = self.stopwatch.paused(), preserve_random_state(self.group.device)
        with paused, preserved, self.strategy.full_model() as model:
            metrics: dict[str, float] = {}
            if self.group.is_main:
                with torch.no_grad(), self._autocast():
                    result = self.evaluate(model, dataclasses.replace(progress))
                metrics = dict(result.metrics)
                for reporter in self.reporters:
                    record = {"step": progress.step, "epoch": progress.epoch, **metrics}
                    reporter.on_evaluation(record, result.samples)
            metrics = self.group.broadcast(metrics)
            if not metric:
                return
            if metric not in metrics:
                raise ConfigError(f"evaluate.metric must be one of {', '.join(metrics) or 'none'}, got {metric!r}")
            self._compare_with_best(metrics[metric], model)

    def _compare_with_best(self, value: float, model: nn.Module) -> None:
        """Keep the model if it is the best so far; stop the run if the best one is too old."""
        progress, sign = self.progress, 1 if self.evaluation.goal == "max" else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.evaluations_since_best = value, 0
            if self.group.is_main and self.keep_best is not None:
                self.keep_best(model)
        else:
            progress.evaluations_since_best += 1
            progress.stopped = 0 < self.evaluation.patience <= progress.evaluations_since_best

    def _save(self) -> None:
        with self.stopwatch.paused():
            state = {
                "format": FORMAT,
                "world_size": self.group.world_size,
                "progress": dataclasses.asdict(self.progress),
                "losses": self.losses.state(),
                "objective": self.strategy.full_state(),
                "optimizer": full_optimizer_state(self.objective, self.optimizer),
                "scaler": self.scaler.state_dict(),
                "random": self.group.collect(get_random_state(self.group.device)),
            }
            if self.group.is_main:
                self.checkpoints.save(state, self.progress.step)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state: The result of `read_state`.

        Raises:
            CheckpointError: If the state is of another format, model, optimizer, or number of processes.
        """
        if state.get("format") != FORMAT:
            raise CheckpointError(f"the checkpoint must have format {FORMAT}, got {state.get('format')}")
        self.strategy.load_state(state["objective"])
        load_optimizer_state(self.objective, self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.losses.load(state["losses"], self.group.device)
        if state["world_size"] == self.group.world_size:
            set_random_state(state["random"][self.group.rank], self.group.device)
        elif self.progress.batch:
            raise CheckpointError(
                f"a run that stopped within an epoch must resume on {state['world_size']} processes, "
                f"got {self.group.world_size}; with another number it can resume from the end of an epoch"
            )
        else:
            seed_everything(self.seed + self.group.rank + 1000003 * self.progress.epoch)


def _is_due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the losses with a gradient; a loss without one is only reported."""
    return sum((loss for loss in losses.values() if loss.requires_grad), torch.zeros(()))
