"""The loader: batches of a task from a source, made by worker processes, the same ones whatever their number.

Batch ``step`` of epoch ``epoch`` is a function of the data, the seed and these two numbers. So a run that was killed
goes on where it was by asking for the next one; nothing else has to be saved.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openblip.data.prefetch import Prefetcher
from openblip.data.problems import Problem, Report
from openblip.data.sampler import End, IndexedSampler, Plan, Sharding, StreamSampler, Unit, Work
from openblip.data.sources.base import Source, Stream
from openblip.data.tasks import Sample, Task
from openblip.errors import InputError, OpenBlipError

LOGGED = 10
_log = logging.getLogger("openblip.data")


class Loader:
    """Batches, which are the task's named tensors, or whatever ``finish`` makes of these in the calling process.

    There pixels are normalised, on the device of the model, and the objective's dataclass is filled. ``workers``
    processes read and decode, each a batch at a time, ``ahead`` batches in all.

    A record that cannot be used is replaced by another one, logged and listed in ``report`` with its address (with
    ``full=False`` it is left out). More than ``max_bad`` of them are an error; so is, always, a batch in whose place
    nothing can be read at all, or a source in which no record suits the task.

    Of a stream, ``length`` is the number of samples in an epoch, and ``window`` how many are shuffled at a time.
    """

    def __init__(
        self,
        source: Source | Stream,
        task: Task,
        *,
        batch: int,
        finish: Callable[[dict[str, Tensor]], Any] = dict,
        seed: int = 42,
        shuffle: bool = True,
        full: bool = True,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        ahead: int | None = None,
        length: int | None = None,
        window: int = 1000,
        max_bad: int | None = None,
        pin: bool = False,
    ) -> None:
        if workers < 0:
            raise InputError(f"workers is a number of processes, or 0 for none, not {workers}")
        self.source, self.task = source, task
        self.report = Report()
        self._finish = finish
        self._max_bad = max_bad
        self._sharding = Sharding(batch=batch, seed=seed, shuffle=shuffle, full=full, rank=rank, world=world)
        self._plan = self._planned(length, window)
        self._workers = workers
        self._ahead = max(1, ahead if ahead is not None else 2 * max(1, workers))
        self._pin = pin
        self._running: _Running | None = None
        self._check()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same for every rank; ``InputError`` for a stream of unknown length."""
        if (steps := self._plan.steps()) is None:
            raise InputError(f"{self.source.name} is a stream: give length, the number of samples in an epoch")
        return steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number ``start_step`` on.

        The workers go on into the next epoch while this one ends; asking for another place starts them anew.
        """
        running = self._running
        if running is None or running.place != (epoch, start_step):
            self.close()
            running = self._running = self._start(epoch, start_step)
        try:
            yield from self._batches(running)
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _batches(self, running: _Running) -> Iterator[Any]:
        for made in running:
            if isinstance(made, End):
                running.place = made.epoch + 1, 0
                if len(self.report) > running.reported:
                    _log.warning("after epoch %d: %s", made.epoch, self.report)
                    running.reported = len(self.report)
                return
            running.place = made.epoch, made.step + 1
            self._note(made.problems)
            if made.failure:
                raise InputError(made.failure)
            if made.tensors:
                yield self._finish(made.tensors)

    def _planned(self, length: int | None, window: int) -> Plan:
        task, source = self.task, self.source
        unusable = f"not usable here, which takes {task.wants}"
        if isinstance(source, Stream):
            return StreamSampler(
                source, lambda record: int(task.parts(record.counts())), self._sharding, length=length, window=window,
                unusable=unusable,
            )  # fmt: skip
        parts = task.parts(source.counts)
        self.report.extend(source.problems)
        missing = [int(index) for index in (parts == 0).nonzero()[0]]
        if len(missing) == len(source):
            raise InputError(f"no record of {source.name} has {task.wants}")
        self.report.extend(Problem(source[index].address, unusable) for index in missing)
        if len(self.report):
            _log.warning("%s", self.report)
        return IndexedSampler(source, parts, self._sharding, source.period)

    def _start(self, epoch: int, step: int) -> _Running:
        def works() -> Iterator[Work | End]:
            at, start = epoch, step
            while True:
                yield from self._plan.works(at, start)
                yield End(at)
                at, start = at + 1, 0

        maker = _Maker(self.source, self.task, self._sharding.seed, self._sharding.full)
        threaded = isinstance(self.source, Stream) and self._workers > 0
        planned = Prefetcher(works(), self._ahead) if threaded else works()
        return _Running((epoch, step), planned, maker, self._workers, self._ahead, self._pin, len(self.report))

    def _note(self, problems: list[Problem]) -> None:
        for problem in problems:
            if self.report.add(problem) and len(self.report) <= LOGGED:
                _log.warning("skipped %s", problem)
        self._check()

    def _check(self) -> None:
        if self._max_bad is not None and len(self.report) > self._max_bad:
            raise InputError(f"more than {self._max_bad} bad records: {self.report}")


# --- in the workers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """A batch, and what went wrong on the way; ``failure`` says why there is none."""

    epoch: int
    step: int
    tensors: dict[str, Tensor]
    problems: list[Problem]
    failure: str = ""

    def pin_memory(self) -> _Made:
        """The same batch in page-locked memory, from which a GPU reads by itself."""
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})


class _Maker(Dataset[Any]):
    """Makes the batch that a work item asks for, in whichever process."""

    def __init__(self, source: Source | Stream, task: Task, seed: int, full: bool) -> None:
        self.source, self.task = source, task
        self.seed, self.full = seed, full

    def __getitem__(self, work: Work | End) -> _Made | End:
        if isinstance(work, End):
            return work
        problems: list[Problem] = []
        samples: list[Sample] = []
        spares = iter(work.spares)
        for unit in work.units:
            sample = self._sample(unit, f"{self.seed}/{work.epoch}", problems)
            while sample is None and (spare := next(spares, None)) is not None:
                sample = self._sample(spare, f"{self.seed}/{work.epoch}/{work.step}", problems)
            if sample is not None:
                samples.append(sample)
        if self.full and not samples:
            reasons = "\n  ".join(map(str, problems[:5]))
            return _Made(work.epoch, work.step, {}, problems, f"{len(problems)} records in a row are bad:\n  {reasons}")
        if self.full:  # only where spares ran out
            samples += [samples[i % len(samples)] for i in range(len(work.units) - len(samples))]
        return _Made(work.epoch, work.step, self.task.batch(samples) if samples else {}, problems)

    def _sample(self, unit: Unit, seed: str, problems: list[Problem]) -> Sample | None:
        """The sample of a unit; None, and one more problem, if it cannot be made."""
        record = unit.record
        if record is None:
            record = cast(Source, self.source)[unit.number]
        if isinstance(record, Problem):
            problems.append(record)
            return None
        try:
            return self.task.sample(record, unit.part, random.Random(f"{seed}/{unit.number}/{unit.part}"))
        except OpenBlipError as error:
            problems.append(Problem(record.address, str(error)))
        except Exception as error:  # an odd picture can break any transform; it is reported as any other
            problems.append(Problem(record.address, f"{type(error).__name__}: {error}"))
        return None


class _Running:
    """A data loader of torch that goes on from epoch to epoch. ``place`` is the batch that comes next."""

    def __init__(
        self,
        place: tuple[int, int],
        works: Iterator[Work | End],
        maker: _Maker,
        workers: int,
        ahead: int,
        pin: bool,
        reported: int,
    ) -> None:
        self.place = place
        self.reported = reported
        self._works = works
        loader: DataLoader[Any] = DataLoader(
            maker,
            batch_size=None,
            sampler=cast(Any, works),
            num_workers=workers,
            prefetch_factor=-(-ahead // workers) if workers else None,
            collate_fn=_same,
            pin_memory=pin,
            generator=torch.Generator(),  # else every start would draw from the global one
        )
        self._made: Iterator[Any] | None = iter(loader)

    def __iter__(self) -> Iterator[_Made | End]:
        return self

    def __next__(self) -> _Made | End:
        assert self._made is not None, "closed"
        return cast("_Made | End", next(self._made))

    def close(self) -> None:
        """Stop the thread and the workers, if there are any."""
        if isinstance(self._works, Prefetcher):
            self._works.close()
        # Now and not when it is collected: an error's traceback may hold it until then, and collected in a circle it
        # waits five seconds for each worker.
        if (shut_down := getattr(self._made, "_shutdown_workers", None)) is not None:
            shut_down()
        self._made = None


def _same(made: Any) -> Any:
    return made
