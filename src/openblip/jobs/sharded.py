"""Batch jobs with one output file per shard of the input, as they run on a cluster.

The output folder is the manifest: a shard whose file is there is done. Files are committed by a rename.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import filelock

from openblip.data.files import parent
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.skips import Skips
from openblip.data.sources.shards import Shard, plan_shards, read_shard
from openblip.errors import JobError
from openblip.io import atomic
from openblip.jobs.executors import Executor
from openblip.jobs.items import FieldsOf, Item, items_of_records
from openblip.jobs.journal import Identity
from openblip.jobs.records import Row, order_fields
from openblip.jobs.run import Annotator, Run
from openblip.jobs.sinks import SinkOptions, open_sink
from openblip.jobs.sinks.lists import ListSink

FORMATS = ("jsonl", "csv", "parquet", "npy")
SETTINGS = "job.json"


class MakeAnnotator(Protocol):
    """Loads the model and returns the annotator of a job; it travels to other processes."""

    def __call__(self) -> Annotator:
        """Return the annotator."""


@dataclass(frozen=True)
class ShardedJob:
    """A batch job over shards.

    Attributes:
        out: Folder of the output files.
        format: Format of the files, one of `FORMATS`.
        model: Name of the model, for the records.
        make_annotator: Loads the model.
        fields_of: Return the fields of the items in a record; see `openblip.jobs.items`.
        columns: Columns of lists that `fields_of` reads.
    """

    out: str
    format: str
    model: str
    make_annotator: MakeAnnotator
    fields_of: FieldsOf | None = None
    columns: tuple[str, ...] = ()

    def path(self, shard: str) -> Path:
        """Return the output file of a shard."""
        return Path(self.out) / f"{shard}.{self.format}"

    def start(self) -> Callable[[Shard], dict[str, int]]:
        """Load the model, and return the function that computes a shard."""
        annotator = self.make_annotator()

        def compute(shard: Shard) -> dict[str, int]:
            return self._compute(shard, annotator)

        return compute

    def _compute(self, shard: Shard, annotator: Annotator) -> dict[str, int]:
        path = self.path(shard.name)
        sink = cast("ListSink", open_sink(self.format, SinkOptions(str(path), str(path.parent), existing="overwrite")))
        root = shard.address if shard.kind == "files" else parent(shard.address)
        inputs: Iterator[Record | Problem] = (record for _, record in read_shard(shard, keep=self.columns))
        run = Run(items_of_records(inputs, root, self.out, self.fields_of), self.model)
        rows: list[Row] = []
        for status in run.run(annotator):
            item = status.item
            where = item.paths_from(str(path.parent)) if isinstance(item, Item) else item.name
            records = status.records if status.error is None else [{"error": status.error}]
            rows += [sink.normalize(order_fields({**row, "path": where, "index": item.index})) for row in records]
        with atomic.replace_file(path, sync=True) as file:
            sink.save_rows(file, rows)
        return {"computed": run.counts["computed"], "failed": run.counts["failed"]}


def run_sharded(
    sources: Sequence[str],
    job: ShardedJob,
    identity: Identity,
    execute: Executor,
    *,
    images: str | None = None,
    recursive: bool = True,
    notify: Callable[[int, int], None] = lambda done, total: None,
    skips: Skips | None = None,
) -> Counter[str]:
    """Run a job over the shards that are not done.

    Args:
        sources: Images, folders, tars and lists.
        job: The job.
        identity: Command, models and options; the folder of another job is refused.
        execute: Runs the job over shards.
        images: Folder for relative image paths of lists.
        recursive: Include the images below a folder.
        notify: Receives the number of finished shards and of all shards.
        skips: Counts the files that folders pass over.

    Returns:
        Number of items that were `computed` and that `failed`, and of shards that were `done` before.

    Raises:
        JobError: The folder holds another job, or is in use.
    """
    folder = Path(job.out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise JobError(f"{folder} is in use by another process") from error
    try:
        _claim(folder, identity)
        shards = plan_shards(sources, images=images, sidecars=False, recursive=recursive, skips=skips)
        pending = [shard for shard in shards if not job.path(shard.name).exists()]
        counts: Counter[str] = Counter(done=len(shards) - len(pending))
        finished = counts["done"]
        notify(finished, len(shards))
        for shard_counts in execute(job, pending) if pending else ():
            counts.update(shard_counts)
            finished += 1
            notify(finished, len(shards))
        return counts
    finally:
        lock.release()


def _claim(folder: Path, identity: Identity) -> None:
    """Store the identity of the job, or raise `JobError` if the folder holds another one."""
    settings: Mapping[str, Any] = {
        "command": identity.command,
        "models": dict(identity.model),
        "options": dict(identity.options),
    }
    path = folder / SETTINGS
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    current = json.loads(json.dumps(settings))
    if stored is None:
        atomic.write_json(path, current)
    elif stored != current:
        raise JobError(f"{folder} holds the results of another command, model or options; choose another --out")
