"""Runs of CapFilt over all shards of a source: in this process, in several processes, or on Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from openblip.blip import Blip, load
from openblip.capfilt import rows
from openblip.capfilt.folder import CapFiltFolder, identify
from openblip.capfilt.images import Fetch, ImageTar, is_web, name_image, read_bytes
from openblip.capfilt.rethreshold import apply_rule
from openblip.capfilt.rows import Row, ScoredText
from openblip.capfilt.rules import Rule
from openblip.capfilt.scoring import Candidate, Sampling, Scorer
from openblip.checkpoints.fingerprint import fingerprint
from openblip.data.images import ImageRef
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns
from openblip.data.skips import Skips
from openblip.data.sources.shards import SHARD_ROWS, Shard, plan_shards, read_shard
from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.io.fetch import FetchOptions
from openblip.jobs.executors import Executor, run_in_process
from openblip.jobs.memory import out_of_memory
from openblip.pipelines.base import prefetch

Format: TypeAlias = Literal["parquet", "webdataset"]
CAPTION_COLUMNS = ("captions", "caption", "text", "sentence", "sentences")
LOOK_AHEAD = 2  # batches of images that threads open ahead of the models


@dataclass(frozen=True)
class ModelOptions:
    """Options for loading the two models.

    Attributes:
        captioner: Name or path of the captioner.
        filter: Name or path of the filter.
        device: Device to compute on.
        engine: Engine to run the models with.
        precision: Precision of the arithmetic.
        batch_size: Images per batch; by default chosen for the model.
        num_workers: Threads that open images; by default chosen for the machine.
        threads: CPU threads to compute with; by default all cores.
        offline: Use no network.
    """

    captioner: str
    filter: str
    device: str = "auto"
    engine: Any = "auto"
    precision: Any = "fp32"
    batch_size: int | None = None
    num_workers: int | None = None
    threads: int | None = None
    offline: bool | None = None

    def load(self, name: str) -> Blip:
        """Load one of the models.

        Args:
            name: Name or path of the model.

        Returns:
            The model.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return load(
            name,
            device=self.device,
            engine=self.engine,
            precision=self.precision,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            offline=self.offline,
        )

    def fingerprints(self) -> dict[str, str]:
        """Return a hash of the files of each model.

        Returns:
            The hashes of `captioner` and `filter`.
        """
        return {
            "captioner": fingerprint(self.captioner, ["caption"], offline=self.offline)["caption"],
            "filter": fingerprint(self.filter, ["retrieval"], offline=self.offline)["retrieval"],
        }


@dataclass(frozen=True)
class CapFiltJob:
    """All settings that a process needs to compute a shard. It is sent to other processes and machines.

    Attributes:
        out: The output folder.
        models: The models.
        sampling: Sampling options of the captioner.
        rule: The rule of the verdicts.
        to: Whether to write tars next to the Parquet files.
        columns: Column of each field whose name differs from the record schema.
        fetch: Options for fetching images from the web; `None` forbids it.
        retry: Compute only the failed rows of finished shards.
        job: Identity of the settings.
    """

    out: str
    models: ModelOptions
    sampling: Sampling = field(default_factory=Sampling)
    rule: Rule = field(default_factory=Rule)
    to: Format = "parquet"
    columns: Columns | None = None
    fetch: FetchOptions | None = None
    retry: bool = False
    job: str = ""

    def settings(self) -> dict[str, object]:
        """Return the settings that determine the scores.

        Returns:
            Models and options by name.
        """
        return {
            **self.models.fingerprints(),
            "engine": self.models.engine,
            "precision": self.models.precision,
            **self.sampling.to_dict(),
            "to": self.to,
            "columns": dict(self.columns or {}),
        }

    def start(self) -> Callable[[Shard], dict[str, int]]:
        """Load the models, and return the function that computes a shard.

        Returns:
            A function that computes and commits a shard, and returns its counts.
        """
        captioner = self.models.load(self.models.captioner)
        same = self.models.filter == self.models.captioner
        matcher = captioner if same else self.models.load(self.models.filter)
        fetch = None if self.fetch is None else self.fetch.open().fetch_bytes
        return ShardComputer(self, Scorer(captioner, matcher, self.sampling), fetch)


def run(
    sources: Sequence[str],
    job: CapFiltJob,
    *,
    images: str | None = None,
    shard_rows: int = SHARD_ROWS,
    execute: Executor = run_in_process,
    notify: Callable[[int, int], None] = lambda done, total: None,
    skips: Skips | None = None,
) -> Counter[str]:
    """Caption and filter the images of some sources. A stopped run resumes with the next shard.

    Args:
        sources: Data, as `plan_shards` accepts it.
        job: The settings of the run.
        images: Folder for relative image paths.
        shard_rows: Rows per shard of sources that are divided by rows.
        execute: Function that runs the job over shards; see `openblip.jobs.executors`.
        notify: Receives the number of finished shards and of all shards.
        skips: Receives the number of skipped files in folders.

    Returns:
        The counts of all shards, including shards of earlier calls; see `openblip.capfilt.rows.count`.

    Raises:
        InputError: A source cannot be used.
        JobError: The output folder contains another run, or is in use.
    """
    folder = CapFiltFolder(Path(job.out))
    settings = job.settings()
    job = replace(job, out=str(folder.path.absolute()), job=identify(settings))
    with folder.lock():
        if job.retry:
            folder.require_settings()
            shards = folder.claim(settings, [])
            finished = [shard for shard in shards if folder.is_done(shard.name)]
            counts = [rows.read_metadata(folder.rows_path(shard.name))["counts"] for shard in finished]
            pending = [shard for shard, count in zip(finished, counts, strict=True) if count.get("failed")]
            done = len(shards) - len(pending)
        else:
            plan = plan_shards(sources, images=images, rows=shard_rows, columns=job.columns, skips=skips)
            shards = folder.claim(settings, plan)
            pending = [shard for shard in shards if not folder.is_done(shard.name)]
            done = len(shards) - len(pending)
        notify(done, len(shards))
        if pending:
            for _ in execute(job, pending):
                done += 1
                notify(done, len(shards))
        return apply_rule(folder, job.rule)


@dataclass
class ShardComputer:
    """Computes shards, and commits each by renaming its finished file.

    Attributes:
        job: The job.
        scorer: The models.
        fetch: Fetches an address of the web.
    """

    job: CapFiltJob
    scorer: Scorer
    fetch: Fetch | None = None

    def __call__(self, shard: Shard) -> dict[str, int]:
        """Compute a shard, write it, and return its counts."""
        folder = CapFiltFolder(Path(self.job.out))
        path = folder.rows_path(shard.name)
        rule, finished = self.job.rule, list[Row]()
        if self.job.retry and path.exists():
            rule = Rule.from_dict(rows.read_metadata(path)["rule"])
            finished = [row for row in rows.to_rows(rows.read_table(path)) if row.error is None]
        webdataset = self.job.to == "webdataset"
        tar = ImageTar(folder.tar_path(shard.name, webdataset), rule if webdataset else None)
        try:
            prefix = _stored_prefix(tar)
            images = [row.image for row in finished if row.image is not None and row.image.startswith(prefix)]
            if images:
                tar.copy([image.removeprefix(prefix) for image in images])
            self._compute(shard, tar, finished)
        except BaseException:
            tar.close(failed=True)
            raise
        tar.close()
        table = rows.make_table(finished, rule)
        rows.write_table(path, table, rule, self.job.job)
        return dict(rows.count(table))

    def _compute(self, shard: Shard, tar: ImageTar, finished: list[Row]) -> None:
        """Append the rows of a shard that are not among `finished`, in the order of the shard."""
        entries = self._entries(shard, {row.key for row in finished})
        opened = prefetch(self._open, entries, self.scorer.num_workers, LOOK_AHEAD * self.scorer.batch_size)
        batch: list[_Opened] = []
        for item in opened:
            if isinstance(item, OpenBlipError):
                raise item  # `_open` returns the errors of images
            batch.append(item)
            if sum(each.candidate is not None for each in batch) >= self.scorer.batch_size:
                self._finish(batch, tar, finished)
                batch = []
        self._finish(batch, tar, finished)

    def _entries(self, shard: Shard, done: set[str]) -> Iterator[tuple[str, Record | Problem]]:
        """Yield the records of a shard by key. A second record with the same key becomes a problem."""
        seen: set[str] = set()
        for key, record in read_shard(shard, columns=self.job.columns, keep=CAPTION_COLUMNS):
            if isinstance(record, Record):
                if key in seen:
                    reason = f"duplicate key: an earlier row of {shard.name} has it"
                    yield record.address, Problem(record.address, reason)
                    continue
                seen.add(key)
            if key not in done:
                yield key, record

    def _open(self, entry: tuple[str, Record | Problem]) -> _Opened:
        """Open the image of a record. Runs on a thread; an error becomes a failed row."""
        key, record = entry
        if isinstance(record, Problem):
            return _Opened(Row(key, error=record.reason))
        try:
            if len(record.images) != 1:
                raise InputError(f"expected one image, got {len(record.images)}")
            ref = record.images[0]
            path = name_image(ref)
            store = path is None or self.job.to == "webdataset"
            data = read_bytes(ref, self.fetch) if store or is_web(ref) or path is None else None
            candidate = self.scorer.open(key, data if data is not None else _source(ref), texts_of(record))
        except (OpenBlipError, OSError) as error:
            return _Opened(Row(key, error=_one_line(error)))
        return _Opened(Row(key, path), candidate, data if store else None)

    def _finish(self, batch: Sequence[_Opened], tar: ImageTar, finished: list[Row]) -> None:
        """Score a batch of opened images, store images that have to be stored, and append the rows."""
        candidates = [item.candidate for item in batch if item.candidate is not None]
        scored = iter(self._score(candidates))
        for item in batch:
            row = item.row
            if item.candidate is not None:
                result = next(scored)
                row = replace(row, error=result, image=None) if isinstance(result, str) else replace(row, texts=result)
            if item.data is not None and row.error is None:
                stored = tar.add(row, item.data)
                image = _stored_prefix(tar) + stored.name
                row = replace(row, image=image, json_offset=stored.json_offset, json_size=stored.json_size)
            finished.append(row)

    def _score(self, candidates: Sequence[Candidate]) -> list[tuple[ScoredText, ...] | str]:
        """Return the texts of each image, or the reason for a failure. If memory runs out, the batch is halved."""
        if not candidates:
            return []
        try:
            return list(self.scorer.score(candidates))
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = _one_line(error)
        if len(candidates) == 1:
            return [f"the image needs more memory than there is ({reason})"]
        half = (len(candidates) + 1) // 2
        self.scorer.batch_size = max(1, min(self.scorer.batch_size, half))
        return [*self._score(candidates[:half]), *self._score(candidates[half:])]


@dataclass
class _Opened:
    """A row whose image is open, or that failed."""

    row: Row
    candidate: Candidate | None = None
    data: bytes | None = None


def texts_of(record: Record) -> list[str]:
    """Return the web texts of a record, including empty texts, which are reported."""
    if record.captions:
        return list(record.captions)
    values = [record.extra[name] for name in CAPTION_COLUMNS if name in record.extra]
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in values]
    blank = any(text is None or not str(text).strip() for texts in lists for text in texts)
    return [""] if blank else []


def _source(ref: ImageRef) -> Any:
    try:
        return ref.read()
    except OSError as error:
        raise ImageError(f"cannot read {ref.address}: {error.strerror or error}") from error


def _stored_prefix(tar: ImageTar) -> str:
    """Return the prefix of the paths of images in a tar, as rows store it."""
    return f"../{tar.path.parent.name}/{tar.path.name}:"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
