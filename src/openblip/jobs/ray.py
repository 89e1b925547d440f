"""Jobs over shards on Ray: a pool of actors, each of which holds the models and computes whole shards.

One row of the Ray dataset is one shard. An actor writes its shard to the output folder and commits it by a rename, so
progress depends neither on Ray's blocks nor on its checkpoints: a shard is done if its file is there. All machines must
share the folder.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from openblip.data.sources.shards import Shard
from openblip.errors import InputError, JobError
from openblip.extras import require
from openblip.jobs.executors import Counts, Executor, ShardJob

ATTEMPTS = 3
"""Attempts to start a cluster: Ray gives up after 30 seconds, which a busy machine may need."""


def run_on_ray(
    address: str = "auto", *, workers: int | None = None, cpus: int = 1, gpus: float | None = None
) -> Executor:
    """Return an executor that computes shards in actors on Ray.

    Args:
        address: "auto" joins the cluster of this machine or of `RAY_ADDRESS`, and starts one if there is none; "local"
            always starts one; otherwise the address of a cluster.
        workers: Number of actors; by default one for each GPU, or for each `cpus` CPU cores without GPUs.
        cpus: CPU cores of an actor, which are also its threads.
        gpus: GPUs of an actor; by default one if the cluster has any.

    Returns:
        The executor.

    Raises:
        InputError: Ray is missing.
    """
    _require_ray()
    return partial(_run, address, workers, cpus, gpus)


def _require_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics to its makers
    return require("ray", "--ray", "ray")


def _run(
    address: str, workers: int | None, cpus: int, gpus: float | None, job: ShardJob, shards: Sequence[Shard]
) -> Iterator[Counts]:
    ray = _require_ray()
    data = require("ray.data", "--ray", "ray")
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        resources = ray.cluster_resources()
        gpus = gpus if gpus is not None else float(resources.get("GPU", 0) >= 1)
        units = resources["GPU"] / gpus if gpus else resources.get("CPU", 1) / cpus
        size = min(len(shards), workers or max(1, int(units)))
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports every execution
        data.DataContext.get_current().enable_progress_bars = False
        rows = [{"shard": json.dumps(shard.to_dict())} for shard in shards]
        results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _ShardActor,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=size),
            fn_constructor_args=(job,),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        try:
            for row in results.iter_rows():
                outcome = json.loads(row["outcome"])
                if "error" in outcome:
                    raise JobError(f"an actor failed: {outcome['error']}; run again to resume")
                yield outcome["counts"]
        except ray.exceptions.RayError as error:
            raise JobError(f"Ray stopped the job ({_cause(error)}); run again to resume") from error
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(address=None if address == "auto" else address, **options)
            return
        except Exception as error:  # noqa: PERF203 (a start-up of over 30 s raises a plain `Exception`)
            ray.shutdown()
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise InputError(f"--ray cannot reach or start {address}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Return the line of an error's message that names the exception behind Ray's, or else its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return (named or lines or [type(error).__name__])[-1]


class _ShardActor:
    """An actor: it loads the models once, and computes one shard per call.

    An error is returned as an outcome, because Ray hides its cause among the frames of its own.
    """

    def __init__(self, job: ShardJob) -> None:
        self._compute = job.start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"outcome": [json.dumps(self._try(Shard.from_dict(json.loads(shard)))) for shard in batch["shard"]]}

    def _try(self, shard: Shard) -> dict[str, Any]:
        try:
            return {"counts": self._compute(shard)}
        except Exception as error:
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
