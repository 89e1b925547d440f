"""The journal of a job: a file of JSON lines next to its output, from which a stopped job resumes.

A line is written before the output that it describes (write-ahead). After a crash, a result is therefore either
absent, and the next run computes it, or in the journal, and the next run writes it exactly once. Kinds of lines:

- `{"job": "9f2c...", "command": "caption", "model": ..., "options": {...}, "started": ...}` starts or resumes a job.
  The lines below belong to it. `"restart": true` invalidates its earlier lines.
- `{"item": "a.jpg", "picture": "48211:1718...", "before": ..., "records": [...]}` is a result. `picture` is the
  signature (size and time) of the image that it was computed from, `before` the content of the output before the job.
  For results that are written into the image, `written` is the signature of the image afterwards.
- `{"item": "b.jpg", "picture": ..., "before": ..., "error": "cannot read ...", "kind": "ImageError"}` is a failure.
- `{"edit": "a.jpg", "was": "a dog", "text": "our dog", "written": ...}` is an edit of a contact sheet that was written
  to the output. Only this line is written after the change it describes; an edit whose line is lost is applied again.
- `{"finished": ..., "done": 498, "failed": 2, "skipped": {"video": 1}}` ends a run that reached the last item.

A partial last line, which a crash leaves, is dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import filelock

from openblip.errors import JobError
from openblip.io import jsonlines
from openblip.jobs.records import Row


@dataclass(frozen=True)
class Identity:
    """The command, the models and the options of a job. Runs with equal values are runs of one job.

    Attributes:
        command: Name of the command.
        model: Hash of each model by task.
        options: Options that change the results.
        ran: The `requested` engine and precision, the `engine` and `precision` that they stand for on this machine, and
            the `version` of OpenBLIP. They are recorded, and a job does not resume with another engine or precision.
    """

    command: str
    model: Mapping[str, str]
    options: Mapping[str, Any]
    ran: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A short hash of all values."""
        values = json.dumps([self.command, dict(self.model), dict(self.options)], sort_keys=True, default=str)
        return blake2b(values.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Edit:
    """A text that was changed in a contact sheet and written to the output.

    Attributes:
        old: The text before.
        new: The text after.
        written_signature: Signature of the image afterwards, if the text is stored in the image.
    """

    old: str
    new: str
    written_signature: str = ""

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Edit:
        """Return the edit of a line of the journal."""
        return cls(line.get("was", ""), line.get("text", ""), line.get("written", ""))

    def to_json(self, key: str) -> dict[str, str]:
        """Return the line of the journal for this edit of the item `key`."""
        written = {"written": self.written_signature} if self.written_signature else {}
        return {"edit": key, "was": self.old, "text": self.new, **written}


@dataclass(frozen=True)
class Entry:
    """The result or the failure of an item, as the journal stores it.

    Attributes:
        signature: Signature of the image that the result was computed from.
        previous: Content of the output before the job.
        records: Results.
        error: Reason of a failure.
        kind: Class of the error.
        written_signature: Signature of the image afterwards, if the result is stored in the image.
        stale: The result is invalid; only `previous` still counts.
        edits: Edits that were written to the output later, in order.
    """

    signature: str
    previous: Any = None
    records: tuple[Row, ...] = ()
    error: str | None = None
    kind: str = ""
    written_signature: str = ""
    stale: bool = False
    edits: tuple[Edit, ...] = ()

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Entry:
        """Return the entry of a line of the journal."""
        return cls(
            signature=line.get("picture", ""),
            previous=line.get("before"),
            records=tuple(line.get("records", ())),
            error=line.get("error"),
            kind=line.get("kind", ""),
            written_signature=line.get("written", ""),
        )

    def to_json(self, key: str) -> dict[str, object]:
        """Return the line of the journal for this entry of the item `key`."""
        line: dict[str, object] = {"item": key, "picture": self.signature}
        if self.previous is not None:
            line["before"] = self.previous
        if self.written_signature:
            line["written"] = self.written_signature
        return line | ({"error": self.error, "kind": self.kind} if self.error else {"records": list(self.records)})


class Journal:
    """The journal of one job, open for writing. Only one process at a time can open it.

    Args:
        path: The file.
        identity: The job.
        restart: Treat all results as invalid.

    Raises:
        JobError: Another process has opened the journal, or it cannot be read or written.
    """

    def __init__(self, path: str, identity: Identity, *, restart: bool = False) -> None:
        self.path = path
        self.identity = identity
        with _as_job_error(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire_lock(path)
            try:
                if not restart:
                    check_ran(path, identity)
                self.entries, self.finished, end = read_journal(path, identity.id)
                self._file = open(path, "ab", buffering=0)  # noqa: PTH123, SIM115 (any bytes may be in its name)
                self._file.truncate(end)
            except BaseException:
                _release_lock(self._lock)
                raise
        if restart:
            self.entries = invalidate(self.entries)
        self._has_header = False
        self._restart = restart and bool(self.entries)

    @staticmethod
    def read(path: str, identity: Identity, *, restart: bool = False) -> dict[str, Entry]:
        """Return the entries of a job without opening its journal for writing.

        Args:
            path: The file, which may be missing.
            identity: The job.
            restart: Treat all results as invalid.

        Raises:
            JobError: The journal cannot be read.
        """
        with _as_job_error(path, "read"):
            entries, _, _ = read_journal(path, identity.id)
        return invalidate(entries) if restart else entries

    @staticmethod
    def add_edits(path: str, edits: Iterable[tuple[str, Edit]]) -> None:
        """Add edits, each with the key of its item, to the journal at `path`, if there is one.

        Edits that the journal ends with already are skipped.

        Raises:
            JobError: Another process has opened the journal, or it cannot be read or written.
        """
        if not os.path.exists(path):  # noqa: PTH110
            return
        journal = Journal(path, Identity("", {}, {}))
        try:
            latest: dict[str, Edit] = {}  # of items that were not computed again since
            for line, _ in _iter_lines(path):
                if "edit" in line:
                    latest[line["edit"]] = Edit.from_json(line)
                elif "item" in line:
                    latest.pop(line["item"], None)
            lines = [edit.to_json(key) for key, edit in edits if latest.get(key) != edit]
            if lines:
                journal._append(lines)
        finally:
            journal.close()

    def add(self, entries: Iterable[tuple[str, Entry]]) -> None:
        """Add results, each with the key of its item; they are on the disk when this returns.

        Raises:
            JobError: The journal cannot be written.
        """
        lines = []
        for key, entry in entries:
            self.entries[key] = entry
            lines.append(entry.to_json(key))
        if lines:
            self._append_with_header(lines)

    def finish(self, done: int, failed: int, skipped: Mapping[str, int] | None = None) -> None:
        """Add the end of a run that reached the last item. A run that changed nothing adds no line.

        Args:
            done: Items with a result.
            failed: Items without one.
            skipped: Files that the input passed over, by kind.
        """
        if self._has_header or not self.finished:
            line = {"finished": _now(), "done": done, "failed": failed}
            self._append_with_header([line | ({"skipped": dict(skipped)} if skipped else {})])
        self.finished = True

    def close(self) -> None:
        """Close the journal, so that other processes can open it."""
        if not self._file.closed:
            self._file.close()
            _release_lock(self._lock)

    def _append_with_header(self, lines: list[dict[str, Any]]) -> None:
        if not self._has_header:
            identity = self.identity
            header: dict[str, Any] = {"job": identity.id, "command": identity.command, "model": dict(identity.model)}
            header |= {"options": dict(identity.options), "ran": dict(identity.ran), "started": _now()}
            lines = [header | ({"restart": True} if self._restart else {}), *lines]
            self._has_header = True
        self._append(lines)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        with _as_job_error(self.path):
            jsonlines.append(self._file, lines, sync=True)


def read_journal(path: str, job: str) -> tuple[dict[str, Entry], bool, int]:
    """Return the entries of a job by item key, whether its last run finished, and the length of all complete lines.

    Args:
        path: The file, which may be missing.
        job: `id` of the job's identity.

    Raises:
        OSError: The file cannot be read.
        JobError: The file is no journal, or it is damaged before its last line.
    """
    entries: dict[str, Entry] = {}
    end, is_own, finished = 0, False, False
    for line, line_end in _iter_lines(path):
        end = line_end
        if "job" in line:
            is_own = line["job"] == job
            if is_own and line.get("restart"):
                entries = invalidate(entries)
        elif is_own and "item" in line:
            entries[line["item"]] = Entry.from_json(line)
        elif "edit" in line:  # also from other jobs with the same output
            entry = entries.get(line["edit"])
            if entry is not None:
                entries[line["edit"]] = replace(entry, edits=(*entry.edits, Edit.from_json(line)))
            continue
        if is_own:
            finished = "finished" in line
    return entries, finished, end


def check_ran(path: str, identity: Identity) -> None:
    """Check that "auto" stands for the same engine and precision as when the job last ran.

    Args:
        path: The journal, which may be missing.
        identity: The job that resumes.

    Raises:
        JobError: It stands for others, so that one output would mix results of two settings.
    """
    if not identity.ran:
        return
    previous = identity.ran
    for line, _ in _iter_lines(path):
        same_job = line.get("command") == identity.command and line.get("model") == dict(identity.model)
        if same_job and _fixed_options(line.get("options", {})) == _fixed_options(identity.options):
            ran = line.get("ran", {})
            previous = ran if ran.get("requested") == identity.ran["requested"] else previous
    before, now = (f"engine {ran['engine']} and precision {ran['precision']}" for ran in (previous, identity.ran))
    if before != now:
        raise JobError(
            f"the job ran with {before}, and auto now chooses {now}: pass --engine {previous['engine']} --precision "
            f"{previous['precision']} to continue it, or --restart"
        )


def _fixed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("engine", "precision")}


def invalidate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries as stale ones."""
    return {key: replace(entry, stale=True) for key, entry in entries.items()}


def _iter_lines(path: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the complete lines of a journal, each with its end in bytes."""
    if not os.path.exists(path):  # noqa: PTH110
        return
    with open(path, "rb") as file:  # noqa: PTH123
        end = 0
        for raw in file:
            line: Any = None
            if raw.endswith(b"\n"):
                with suppress(ValueError):
                    line = jsonlines.decode(raw)
            if not isinstance(line, dict):
                break
            end += len(raw)
            yield line, end
        if file.read():  # only the last line can be partial
            raise JobError(f"{path} is not a journal, or it is damaged at byte {end}: move or delete it")


def _acquire_lock(path: str) -> filelock.BaseFileLock:
    lock = filelock.FileLock(f"{path}.lock")
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise JobError(f"another job is writing to this output ({path}): wait for it, or stop it") from None
    return lock


def _release_lock(lock: filelock.BaseFileLock) -> None:
    with suppress(OSError):
        Path(lock.lock_file).unlink()  # before the release: a process that opens the old file sees that it is gone
    lock.release()


@contextmanager
def _as_job_error(path: str, action: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "; run the command again to resume the job" if action == "write" else ""
        raise JobError(f"cannot {action} {path}: {error.strerror or error}{hint}") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
