"""Running a job over shards: in this process, in several processes, or on Ray (`openblip.jobs.ray`).

A job is a picklable object whose `start` loads the models and returns the function that computes one shard. The
function commits its shard to the output folder before it returns, so nothing is lost with a process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Protocol, TypeAlias

from openblip.data.sources.shards import Shard
from openblip.errors import JobError

Counts: TypeAlias = "dict[str, int]"


class ShardJob(Protocol):
    """A job over shards."""

    def start(self) -> Callable[[Shard], Counts]:
        """Load the models, and return the function that computes and commits a shard."""
        ...


class Executor(Protocol):
    """Runs a job over shards."""

    def __call__(self, job: ShardJob, shards: Sequence[Shard]) -> Iterator[Counts]:
        """Yield the counts of every shard as it is finished, in any order."""
        ...


def run_in_process(job: ShardJob, shards: Sequence[Shard]) -> Iterator[Counts]:
    """Compute the shards one by one in this process.

    Args:
        job: The job.
        shards: The shards.

    Yields:
        The counts of each shard.
    """
    if shards:
        yield from map(job.start(), shards)


def run_in_processes(workers: int) -> Executor:
    """Return an executor that computes shards in several processes of this machine.

    Args:
        workers: Number of processes. Each loads the models.

    Returns:
        The executor.
    """
    return partial(_run_in_pool, workers)


_compute: Any = None


def _start(job: ShardJob) -> None:
    global _compute
    _compute = job.start()


def _call(shard: Shard) -> Counts:
    counts: Counts = _compute(shard)
    return counts


def _run_in_pool(workers: int, job: ShardJob, shards: Sequence[Shard]) -> Iterator[Counts]:
    context = multiprocessing.get_context("spawn")  # a forked torch can hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(job,)) as pool:
        futures = [pool.submit(_call, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise JobError(
                "a worker process ended unexpectedly (killed, or out of memory); run again to resume"
            ) from error
        finally:
            for future in futures:
                future.cancel()
