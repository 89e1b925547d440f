"""The loop: one for every task. It knows batches that go in and named losses that come out.

A step is ``accumulate`` batches; an epoch is what the loader calls one. After every epoch the model is evaluated, by a
function that is handed in, and then a checkpoint is written from which a killed run goes on bit for bit: data position,
weights, momentum twin, queues, optimizer, loss scale, random generators of every process, and the averages of the log.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from openblip.errors import CheckpointError, ConfigError, TrainingError
from openblip.model.precision import DTYPES
from openblip.training.config import AdamWSettings, LoopSettings
from openblip.training.distributed import Alone, Place
from openblip.training.optim import adamw, load_optimizer_state, optimizer_state
from openblip.training.reports import Reporter
from openblip.training.schedule import Schedule
from openblip.training.shards import clip_gradients, like, whole_state
from openblip.training.state import (
    Checkpoints,
    random_state,
    read_state,
    same_random_state,
    seed_everything,
    set_random_state,
)

FORMAT = 1


class Loader(Protocol):
    """Where batches come from: dataclasses of tensors on the device, a function of epoch and place in it alone."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same for every process."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The batches of one epoch from ``start_step`` on."""


@dataclass
class Progress:
    """Where a run stands: ``batch`` batches of ``epoch`` are used, ``step`` steps done in all.

    ``best`` is the best metric so far, ``waited`` the evaluations since then; ``stopped`` ends the run.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    waited: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: figures by name, and things to look at, such as captions of some pictures."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()


Evaluate = Callable[[nn.Module, Progress], Evaluation]
Arguments = Callable[[Progress, int], Mapping[str, float]]


class Trainer:
    """A run.

    ``arguments`` gives what the objective wants to know of a step beside its batch (the alpha of ITC), from the
    progress and the steps per epoch. ``evaluate`` gets the plain model in evaluation mode, on the first process alone;
    ``keep_best`` gets it whenever the metric is the best so far.
    """

    def __init__(
        self,
        parallel: Alone,
        loader: Loader,
        settings: LoopSettings,
        *,
        place: Place,
        optimizer: AdamWSettings,
        schedule: Schedule,
        checkpoints: Checkpoints,
        arguments: Arguments | None = None,
        evaluate: Evaluate | None = None,
        keep_best: Callable[[nn.Module], None] | None = None,
        reporters: Sequence[Reporter] = (),
    ) -> None:
        self.parallel = parallel
        self.objective = parallel.objective
        self.loader = loader
        self.settings = settings
        self.place = place
        self.schedule = schedule
        self.clip_norm = optimizer.clip_norm
        self.optimizer = adamw(self.objective, optimizer)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=settings.precision == "fp16")
        self.checkpoints = checkpoints
        self.arguments = arguments
        self.evaluate = evaluate
        self.keep_best = keep_best
        self.reporters = reporters if place.is_first else ()
        self.progress = Progress()
        self.tally = Tally()
        self.steps_per_epoch = math.ceil(loader.steps_per_epoch / settings.accumulate)
        if self.steps_per_epoch < 1:
            raise ConfigError("an epoch has no batch: is the batch larger than the data?")

    def run(self, *, resume: bool = False) -> Progress:
        """Train to the end; with ``resume``, from the newest checkpoint if there is one."""
        seed_everything(self.settings.seed + self.place.rank)
        if self.place.is_first:
            self.checkpoints.clear()
        if resume and (newest := self.place.agree(self.checkpoints.latest())) is not None:
            self._restore(read_state(newest))
        for reporter in self.reporters:
            reporter.begin(self.progress.step, self.settings.epochs * self.steps_per_epoch, self.steps_per_epoch)
        self.objective.train()
        self.tally.clock.start()
        while self.progress.epoch < self.settings.epochs and not self.progress.stopped:
            self._epoch()
        for reporter in self.reporters:
            reporter.close()
        return self.progress

    # One epoch.

    def _epoch(self) -> None:
        progress, settings = self.progress, self.settings
        for batches in self._groups():
            self._step(batches)
            progress.batch += len(batches)
            progress.step += 1
            for reporter in self.reporters:
                reporter.tick(progress.step)
            if progress.batch < self.loader.steps_per_epoch:  # else it is the epoch's end that comes now
                self._pause()
            if progress.stopped:
                break
        if self.tally.steps:
            self._log()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if not progress.stopped and (_due(progress.epoch, settings.evaluate_every) or self._evaluates()):
            self._evaluate()
        self._save()

    def _pause(self) -> None:
        """What may be due between two steps of an epoch. A checkpoint comes last: what it follows is not done again."""
        settings, step = self.settings, self.progress.step
        if _due(step, settings.log_every):
            self._log()
        if _due(step, settings.evaluate_steps):
            self._evaluate()
        if _due(step, settings.save_every):
            self._save()

    def _evaluates(self) -> bool:
        """Whether an evaluation is due at the end of an epoch for another reason than its number."""
        settings, progress = self.settings, self.progress
        is_last = progress.epoch == settings.epochs and settings.evaluate_every > 0
        return is_last or _due(progress.step, settings.evaluate_steps)

    def _groups(self) -> Iterator[list[object]]:
        """The batches of each step. Whatever the loader draws leaves the generators that training draws from alone."""
        progress, size = self.progress, self.settings.accumulate
        if progress.batch >= self.loader.steps_per_epoch:
            return
        with same_random_state(torch.device("cpu")):
            batches = iter(self.loader.epoch(progress.epoch, progress.batch))
        while True:
            with same_random_state(torch.device("cpu")):
                group = list(islice(batches, size))
            if not group:
                return
            yield group

    # One step.

    def _step(self, batches: Sequence[object]) -> None:
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        steps = self.loader.steps_per_epoch
        arguments = self.arguments(self.progress, steps) if self.arguments else {}
        for i, batch in enumerate(batches):
            with self.parallel.accumulating(last=i == len(batches) - 1):
                with self._autocast():
                    losses = self.parallel(batch, **arguments)
                    loss = total(losses)
                torch.autograd.backward(self.scaler.scale(loss / len(batches)))
            self.tally.add(losses, loss, 1 / len(batches), _pictures(batch))
        self._update()
        self.tally.steps += 1

    def _update(self) -> None:
        self.parallel.finish()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.objective.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _rate(self) -> float:
        progress = self.progress
        return self.schedule.rate(
            epoch=progress.epoch,
            step=progress.batch // self.settings.accumulate,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.settings.epochs,
        )

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.settings.precision]
        return torch.autocast(self.place.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    # Along the way.

    def _log(self) -> None:
        """Report the averages since the last time, over all processes. A loss that is no number ends the run."""
        values, pictures = self.tally.take(self.place)
        progress, seconds = self.progress, self.tally.clock.lap()
        if not all(map(math.isfinite, values.values())) and not self.scaler.is_enabled():
            raise TrainingError(
                f"the loss is no longer a number at step {progress.step}: {values}; lower the learning rate, warm up, "
                "clip (optimizer.clip_norm), or train in fp32"
            )
        left = self.settings.epochs * self.steps_per_epoch - progress.step
        speed = pictures * self.place.size / max(seconds, 1e-9)
        record = {
            "step": progress.step,
            "epoch": progress.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            **values,
            "images_per_second": round(speed, 2),
            "eta_seconds": round(self.tally.clock.per_step() * left),
        }
        for reporter in self.reporters:
            reporter.train(record)

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        progress, metric = self.progress, self.settings.metric
        with self.tally.clock.stopped(), same_random_state(self.place.device), self.parallel.plain() as model:
            found = None
            if self.place.is_first:
                with torch.no_grad(), self._autocast():
                    found = self.evaluate(model, dataclasses.replace(progress))
                for reporter in self.reporters:
                    reporter.evaluation(
                        {"step": progress.step, "epoch": progress.epoch, **found.metrics}, found.samples
                    )
            metrics = self.place.agree(dict(found.metrics) if found else {})
            if not metric:
                return
            if metric not in metrics:
                raise ConfigError(f"the evaluation measures {', '.join(metrics) or 'nothing'}, not {metric!r}")
            self._judge(metrics[metric], model)

    def _judge(self, value: float, model: nn.Module) -> None:
        """Keep the model if it is the best so far, and stop if none has been for long."""
        progress, sign = self.progress, 1 if self.settings.goal == "max" else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.waited = value, 0
            if self.place.is_first and self.keep_best is not None:
                self.keep_best(model)
        else:
            progress.waited += 1
            progress.stopped = 0 < self.settings.patience <= progress.waited

    # Checkpoints.

    def _save(self) -> None:
        with self.tally.clock.stopped():
            state = {
                "format": FORMAT,
                "processes": self.place.size,
                "progress": dataclasses.asdict(self.progress),
                "tally": self.tally.state(),
                "objective": whole_state(self.objective.state_dict()),
                "optimizer": optimizer_state(self.objective, self.optimizer),
                "scaler": self.scaler.state_dict(),
                "random": self.place.collect(random_state(self.place.device)),
            }
            if self.place.is_first:
                self.checkpoints.save(state, self.progress.step)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state.get("format") != FORMAT:
            raise CheckpointError(f"this checkpoint has the format {state.get('format')}, not {FORMAT}")
        load_weights(self.objective, state["objective"])
        load_optimizer_state(self.objective, self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.tally.load(state["tally"], self.place.device)
        if state["processes"] == self.place.size:
            set_random_state(state["random"][self.place.rank], self.place.device)
        elif self.progress.batch:
            raise CheckpointError(
                f"this run stopped within an epoch, on {state['processes']} processes: it can go on with as many, or "
                f"on {self.place.size} from the end of an epoch"
            )
        else:
            seed_everything(self.settings.seed + self.place.rank + 1000003 * self.progress.epoch)


def _due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0


@torch.no_grad()
def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a module, in shards or not, from whole tensors."""
    state = module.state_dict()
    if strangers := state.keys() ^ tensors.keys():
        raise CheckpointError(f"the checkpoint is of another model: {len(strangers)} tensors differ ({min(strangers)})")
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(state[name].shape)}"
            raise CheckpointError(f"the checkpoint is of another model: {name} has the shape {shapes}")
        state[name].copy_(like(tensor, state[name]))


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the losses that train something; a loss without a gradient is there to be logged."""
    return sum((loss for loss in losses.values() if loss.requires_grad), torch.zeros(()))


def _pictures(batch: object) -> int:
    pixels = getattr(batch, "pixels", None)
    return len(pixels) if isinstance(pixels, Tensor) else 2 * len(cast(Any, batch).first)


class Tally:
    """Sums of the losses since the last log, on the device, so that no step waits for its value."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.pictures = 0
        self.clock = Clock()

    def add(self, losses: Mapping[str, Tensor], loss: Tensor, weight: float, pictures: int) -> None:
        """Count one batch, ``weight`` of a step."""
        for name, value in {"loss": loss, **losses}.items():
            value = value.detach().float() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.pictures += pictures

    def take(self, place: Place) -> tuple[dict[str, float], int]:
        """Mean losses per step over all processes, and the pictures of this one; the sums start anew."""
        values = place.mean(torch.stack(list(self.sums.values()))) / self.steps
        means = dict(zip(self.sums, values.tolist(), strict=True))
        self.clock.steps += self.steps
        pictures = self.pictures
        self.sums, self.steps, self.pictures = {}, 0, 0
        return means, pictures

    def state(self) -> dict[str, Any]:
        """What is not logged yet."""
        return {"sums": dict(self.sums), "steps": self.steps}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Put back what :meth:`state` gave."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.steps = state["steps"]


class Clock:
    """Seconds of training: evaluation and saving do not count."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """From now on."""
        self.steps = 0
        self.began = self.mark = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self.mark = now - self.mark, now
        return seconds

    def per_step(self) -> float:
        """Seconds that a step has taken on average."""
        return (time.monotonic() - self.began) / max(self.steps, 1)

    def stopped(self) -> _Pause:
        """A block that does not count."""
        return _Pause(self)


class _Pause:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        away = time.monotonic() - self.since
        self.clock.began += away
        self.clock.mark += away
