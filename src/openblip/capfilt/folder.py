"""The output folder of CapFilt, which is the manifest of the run: a shard is finished if its Parquet file exists."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import filelock

from openblip.capfilt import rows
from openblip.capfilt.rules import Rule, RuleFields
from openblip.data.sources.shards import Shard
from openblip.errors import JobError
from openblip.io import atomic, jsonlines

SETTINGS, PLAN = "capfilt.json", "plan.jsonl"


class RunSettings(TypedDict):
    """The content of `capfilt.json`: the settings of the job, the rule, and whether all shards have its verdicts."""

    job: dict[str, object]
    rule: RuleFields | None
    complete: bool


@dataclass(frozen=True)
class CapFiltFolder:
    """The output of a run.

    - `parquet/SHARD.parquet`: the rows with their scores and verdicts. `openblip train pretrain` reads this folder.
    - `webdataset/SHARD.tar`: images and JSON, with `--to webdataset`. Training reads this folder as well.
    - `images/SHARD.tar`: images without a local file, if `--to webdataset` is not given.
    - `capfilt.json`: models, options and the current rule. `plan.jsonl`: the shards of the source.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def parquet(self) -> Path:
        """Folder of the rows."""
        return self.path / "parquet"

    def rows_path(self, shard: str) -> Path:
        """Return the Parquet file of a shard."""
        return self.parquet / f"{shard}.parquet"

    def tar_path(self, shard: str, webdataset: bool) -> Path:
        """Return the tar of a shard."""
        return self.path / ("webdataset" if webdataset else "images") / f"{shard}.tar"

    def shards(self) -> list[str]:
        """Return the names of the finished shards, sorted."""
        return sorted(path.stem for path in self.parquet.glob("*.parquet") if not path.name.startswith("."))

    def is_done(self, shard: str) -> bool:
        """Return whether a shard is finished."""
        return self.rows_path(shard).exists()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder while a command changes it.

        Raises:
            JobError: Another process has locked the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise JobError(f"{self.path} is in use by another process") from error
        try:
            yield
        finally:
            lock.release()

    def claim(self, settings: Mapping[str, Any], shards: Sequence[Shard]) -> list[Shard]:
        """Start a run in this folder, or resume the same run.

        Args:
            settings: Models and options that change the scores.
            shards: Shards of the source.

        Returns:
            The shards of the run: all shards of the source, and shards of earlier calls that the source no longer has.

        Raises:
            JobError: The folder contains another run, or a shard of the source has changed.
        """
        with suppress(OSError):
            for leftover in (*self.path.glob("*/.openblip-*.part"), *self.path.glob(".openblip-*.part")):
                leftover.unlink()  # of a process that was killed
        stored = self.read_settings()
        if stored is not None:
            changed = sorted(k for k in {*stored["job"], *settings} if stored["job"].get(k) != settings.get(k))
            if changed:
                raise JobError(f"{self.path} contains a run with another {', '.join(changed)}; choose another --out")
        planned = {shard.name: shard for shard in self._read_plan()}
        for shard in shards:
            previous = planned.get(shard.name, shard)
            if previous != shard:
                raise JobError(
                    f"{shard.address} changed since {self.path} was started, so its shards are divided in another way; "
                    "choose another --out"
                )
        new = [shard for shard in shards if shard.name not in planned]
        everything = [*planned.values(), *new]
        if new:
            content = b"".join(jsonlines.encode(shard.to_dict()) for shard in everything)
            atomic.write_bytes(self.path / PLAN, content, sync=True)
        if stored is None:
            self.write_settings(RunSettings(job=dict(settings), rule=None, complete=True))
        return everything

    def read_settings(self) -> RunSettings | None:
        """Return the content of `capfilt.json`; `None` if the folder contains no run."""
        try:
            values: RunSettings = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise JobError(f"cannot read {self.path / SETTINGS}: {error}") from error
        return values

    def require_settings(self) -> RunSettings:
        """Return the content of `capfilt.json`.

        Raises:
            JobError: The folder contains no run.
        """
        settings = self.read_settings()
        if settings is None:
            raise JobError(f"{self.path} must be the output of `openblip capfilt run`, got no {SETTINGS}")
        return settings

    def write_settings(self, settings: RunSettings) -> None:
        """Write `capfilt.json`."""
        atomic.write_json(self.path / SETTINGS, dict(settings))

    def planned(self) -> list[Shard]:
        """Return the shards of the run."""
        return self._read_plan()

    def count(self) -> Counter[str]:
        """Return the counts of all finished shards. Only the footers of the files are read."""
        counts: Counter[str] = Counter()
        for shard in self.shards():
            counts.update(rows.read_metadata(self.rows_path(shard))["counts"])
        return counts

    def _read_plan(self) -> list[Shard]:
        if not (self.path / PLAN).exists():
            return []
        return [Shard.from_dict(values) for values in jsonlines.read(self.path / PLAN)]


def identify(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify the settings of a job."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def digest_rows(folder: CapFiltFolder) -> str:
    """Return the SHA-256 over the sorted keys, texts and errors of all rows; two equal runs have the same.

    Args:
        folder: The output of a run.
    """
    lines = []
    for shard in folder.shards():
        table = rows.read_table(folder.rows_path(shard), ["key", "texts", "sources", "error"])
        lines += [json.dumps(list(row.values()), ensure_ascii=False) for row in table.to_pylist()]
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def current_rule(folder: CapFiltFolder) -> Rule:
    """Return the current rule of a folder."""
    rule = folder.require_settings()["rule"]
    return Rule() if rule is None else Rule.from_dict(rule)
