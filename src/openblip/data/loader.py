"""The data loader: batches of a task from a source, equal for any number of worker processes.

Batch `step` of epoch `epoch` depends only on the data, the seed and these two numbers. A killed run resumes by asking
for the next batch; no other state needs saving.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openblip.data.prefetch import Prefetcher
from openblip.data.problems import Problem, Report
from openblip.data.sampler import BatchPlan, EpochEnd, IndexedSampler, Sampler, SampleRef, Sharding, StreamSampler
from openblip.data.samples import Sample
from openblip.data.sources.base import Source, Stream
from openblip.data.tasks.base import TaskData
from openblip.errors import InputError, OpenBlipError

MAX_LOGGED = 10
_log = logging.getLogger("openblip.data")


class Loader:
    """Loads batches, as named tensors, in worker processes.

    A record that cannot be used is replaced by another one, logged, and listed in `report` with its address.

    Args:
        source: Records, by number or as a stream.
        task: Makes samples and batches.
        batch_size: Samples per batch and process.
        seed: Seed of the order and of every sample's random draws.
        shuffle: Shuffle the samples.
        drop_last: Yield full batches only, the same number for every rank, and replace bad records. Otherwise yield
            every sample once and leave bad records out.
        rank: Number of this process.
        world_size: Number of processes that share the data.
        num_workers: Worker processes, each of which makes one batch at a time; 0 loads in this process.
        prefetch: Batches made ahead, by all workers together; two per worker by default.
        samples_per_epoch: Length of an epoch of a stream.
        shuffle_window: Samples of a stream that are shuffled at a time.
        max_bad_records: Largest number of bad records; `None` sets no limit.
        pin_memory: Put batches into page-locked memory.
        recurring_views: Epochs after which the random draws of a sample recur, so that a cache finds its views again.

    Raises:
        InputError: If an option is out of range, or no record suits the task.
    """

    def __init__(
        self,
        source: Source | Stream,
        task: TaskData[Any],
        *,
        batch_size: int,
        seed: int = 42,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch: int | None = None,
        samples_per_epoch: int | None = None,
        shuffle_window: int = 1000,
        max_bad_records: int | None = None,
        pin_memory: bool = False,
        recurring_views: int | None = None,
    ) -> None:
        if num_workers < 0:
            raise InputError(f"num_workers must be 0 (load in this process) or more, got {num_workers}")
        self.source, self.task = source, task
        self.report = Report()
        self._max_bad_records = max_bad_records
        self._sharding = Sharding(
            batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
        )
        self._sampler = self._make_sampler(samples_per_epoch, shuffle_window)
        self._num_workers = num_workers
        self._prefetch = max(1, prefetch if prefetch is not None else 2 * max(1, num_workers))
        self._pin_memory = pin_memory
        self._recurring_views = recurring_views
        self._run: _LoaderRun | None = None
        self._check_limit()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same for every rank; raises `InputError` for a stream of unknown length."""
        if (steps := self._sampler.steps()) is None:
            raise InputError(f"{self.source.name} is a stream: set samples_per_epoch")
        return steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of an epoch.

        Workers continue with the next epoch while this one ends; asking for any other position restarts them.

        Args:
            epoch: Number of the epoch.
            start_step: First batch to yield.

        Yields:
            The tensors of each batch, by name.

        Raises:
            InputError: If a batch cannot be filled, or more than `max_bad_records` records are bad.
        """
        run = self._run
        if run is None or run.position != (epoch, start_step):
            self.close()
            run = self._run = self._start(epoch, start_step)
        try:
            for result in run:
                if isinstance(result, EpochEnd):
                    run.position = result.epoch + 1, 0
                    if len(self.report) > run.num_reported:
                        _log.warning("after epoch %d: %s", result.epoch, self.report)
                        run.num_reported = len(self.report)
                    return
                run.position = result.epoch, result.step + 1
                for problem in result.problems:
                    if self.report.add(problem) and len(self.report) <= MAX_LOGGED:
                        _log.warning("skipped: %s", problem)
                self._check_limit()
                if result.failure:
                    raise InputError(result.failure)
                if result.tensors:
                    yield result.tensors
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def _make_sampler(self, samples_per_epoch: int | None, shuffle_window: int) -> Sampler:
        task, source = self.task, self.source
        unusable = f"not usable for this task, which needs {task.needs}"
        if isinstance(source, Stream):
            return StreamSampler(
                source,
                task.count_samples,
                self._sharding,
                samples_per_epoch=samples_per_epoch,
                shuffle_window=shuffle_window,
                unusable=unusable,
            )
        num_samples = task.num_samples(source.counts)
        self.report.extend(source.problems)
        self.report.skips = source.skips
        missing = [int(index) for index in (num_samples == 0).nonzero()[0]]
        if len(missing) == len(source):
            raise InputError(f"no record of {source.name} has {task.needs}")
        noticed = [index for index in missing if not source.counts["filtered"][index]]
        self.report.extend(Problem(source[index].address, unusable) for index in noticed)
        if len(self.report) or self.report.skips.counts:
            _log.warning("%s", self.report)
        return IndexedSampler(source, num_samples, self._sharding, source.period)

    def _start(self, epoch: int, step: int) -> _LoaderRun:
        plans: Iterator[BatchPlan | EpochEnd] = self._plans(epoch, step)
        if isinstance(self.source, Stream) and self._num_workers > 0:
            plans = Prefetcher(plans, self._prefetch)
        sharding = self._sharding
        maker = _BatchMaker(self.source, self.task, sharding.seed, sharding.drop_last, self._recurring_views)
        loader: DataLoader[Any] = DataLoader(
            maker,
            batch_size=None,
            sampler=cast(Any, plans),
            num_workers=self._num_workers,
            prefetch_factor=-(-self._prefetch // self._num_workers) if self._num_workers else None,
            collate_fn=_identity,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # otherwise every start would draw from the global generator
        )
        return _LoaderRun((epoch, step), plans, loader, len(self.report))

    def _plans(self, epoch: int, step: int) -> Iterator[BatchPlan | EpochEnd]:
        while True:
            yield from self._sampler.plans(epoch, step)
            yield EpochEnd(epoch)
            epoch, step = epoch + 1, 0

    def _check_limit(self) -> None:
        if self._max_bad_records is not None and len(self.report) > self._max_bad_records:
            raise InputError(f"at most {self._max_bad_records} records may be bad, got {self.report}")


@dataclass(frozen=True)
class _BatchResult:
    """A batch, and the problems met while making it; `failure` is the error if there is no batch."""

    epoch: int
    step: int
    tensors: dict[str, Tensor]
    problems: list[Problem]
    failure: str = ""

    def pin_memory(self) -> _BatchResult:
        """Return the same batch in page-locked memory. PyTorch calls this by name."""
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})


class _BatchMaker(Dataset[Any]):
    """Makes the batch of a plan, in any process."""

    def __init__(
        self, source: Source | Stream, task: TaskData[Any], seed: int, drop_last: bool, recurring_views: int | None
    ) -> None:
        self.source, self.task = source, task
        self.seed, self.drop_last, self.recurring_views = seed, drop_last, recurring_views

    def __getitem__(self, plan: BatchPlan | EpochEnd) -> _BatchResult | EpochEnd:
        if isinstance(plan, EpochEnd):
            return plan
        problems: list[Problem] = []
        samples: list[Sample] = []
        spares = iter(plan.spares)
        view = plan.epoch if self.recurring_views is None else plan.epoch % self.recurring_views
        for ref in plan.samples:
            sample = self._make_sample(ref, f"{self.seed}/{view}", problems)
            while sample is None and (spare := next(spares, None)) is not None:
                sample = self._make_sample(spare, f"{self.seed}/{plan.epoch}/{plan.step}", problems)
            if sample is not None:
                samples.append(sample)
        if self.drop_last and not samples:
            reasons = "\n  ".join(map(str, problems[:5]))
            failure = f"{len(problems)} records in a row are bad:\n  {reasons}"
            return _BatchResult(plan.epoch, plan.step, {}, problems, failure)
        if self.drop_last:  # repeat samples if the spares ran out
            samples += [samples[i % len(samples)] for i in range(len(plan.samples) - len(samples))]
        tensors = self.task.make_batch(samples) if samples else {}
        return _BatchResult(plan.epoch, plan.step, tensors, problems)

    def _make_sample(self, ref: SampleRef, seed: str, problems: list[Problem]) -> Sample | None:
        """Return a sample; or `None`, with the reason added to `problems`."""
        record = ref.record
        if record is None:
            record = cast(Source, self.source)[ref.record_number]
        if isinstance(record, Problem):
            problems.append(record)
            return None
        try:
            rng = random.Random(f"{seed}/{ref.record_number}/{ref.index}")
            return cast(Sample, self.task.make_sample(record, ref.index, rng))
        except OpenBlipError as error:
            problems.append(Problem(record.address, str(error)))
        except Exception as error:  # an odd image can break any transform; report it like any other problem
            problems.append(Problem(record.address, f"{type(error).__name__}: {error}"))
        return None


class _LoaderRun:
    """A PyTorch data loader that continues from epoch to epoch; `position` is the next batch."""

    def __init__(
        self,
        position: tuple[int, int],
        plans: Iterator[BatchPlan | EpochEnd],
        loader: DataLoader[Any],
        num_reported: int,
    ) -> None:
        self.position = position
        self.num_reported = num_reported
        self._plans = plans
        self._results: Iterator[Any] | None = iter(loader)

    def __iter__(self) -> Iterator[_BatchResult | EpochEnd]:
        return self

    def __next__(self) -> _BatchResult | EpochEnd:
        assert self._results is not None, "closed"
        return cast("_BatchResult | EpochEnd", next(self._results))

    def close(self) -> None:
        """Stop the prefetching thread and the workers."""
        if isinstance(self._plans, Prefetcher):
            self._plans.close()
        # Now, not at collection: a traceback may keep the iterator alive, and the cyclic collector waits five seconds
        # for each worker.
        if (shut_down := getattr(self._results, "_shutdown_workers", None)) is not None:
            shut_down()
        self._results = None


def _identity(result: Any) -> Any:
    return result
