"""The journal of a job: one JSON object per line, beside the output, so that a stopped job goes on where it was.

A line is written before what it tells of is done (write-ahead), so after a crash the next run finds every result either
nowhere, and computes it, or here, and sees to it that it is in the output exactly once. Kinds of lines:

- ``{"job": "9f2c...", "command": "caption", "model": ..., "options": {...}, "started": ...}`` begins a job, or goes on
  with it; the lines below are its own. ``"restart": true`` takes all its earlier lines for out of date.
- ``{"item": "a.jpg", "picture": "48211:1718...", "before": ..., "records": [...]}`` is a result: ``picture`` is size
  and time of the file it was computed from, ``before`` what stood in its place in the output. ``written``, for results
  that go into the picture itself, is what ``picture`` becomes by that.
- ``{"item": "b.jpg", "picture": ..., "before": ..., "error": "cannot read ...", "kind": "ImageError"}`` is a failure.
- ``{"edit": "a.jpg", "was": "a dog", "text": "our dog", "written": ...}`` is an edit of a contact sheet that was
  written back: what stands there since is no surprise to the job. ``written`` as above. This line alone is written
  after what it tells of; one that a crash loses comes when the edits are applied again.
- ``{"finished": ..., "done": 498, "failed": 2}`` ends a run that went through everything.

A last line that a crash cut short is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from openblip.errors import JobError
from openblip.jobs.records import Row

try:
    import fcntl
except ImportError:  # Windows: two jobs on one output are then the user's own care
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Identity:
    """What makes a job the same job: its command, its models, and every option that changes what is written."""

    command: str
    model: Mapping[str, str]
    options: Mapping[str, Any]

    @property
    def id(self) -> str:
        """A short name for it."""
        told = json.dumps([self.command, dict(self.model), dict(self.options)], sort_keys=True, default=str)
        return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Edit:
    """A text that was changed by hand in a contact sheet and written back. ``written`` is that of :class:`Entry`."""

    was: str
    text: str
    written: str = ""


@dataclass(frozen=True)
class Entry:
    """What the journal knows about an item. ``stale`` entries tell only what stood in the output before the job.

    ``written`` is what ``picture`` becomes where the result is written into the picture itself. ``edits`` were written
    back since, in this order.
    """

    picture: str
    before: Any = None
    records: tuple[Row, ...] = ()
    error: str | None = None
    kind: str = ""
    written: str = ""
    stale: bool = False
    edits: tuple[Edit, ...] = ()


class Journal:
    """The journal at ``path`` of the job ``identity``; held by one process at a time.

    Raises :class:`JobError` if another process holds it, or if it cannot be read or written.
    """

    def __init__(self, path: str, identity: Identity, *, restart: bool = False) -> None:
        self.path = path
        self.identity = identity
        self.entries: dict[str, Entry] = {}
        self.finished = False
        with _telling(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)  # noqa: PTH103, PTH120
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            with _telling(path):
                self.entries, self.finished, whole = _read(path, identity.id)
                os.truncate(self._file, whole)
        except BaseException:
            self.close()
            raise
        if restart:
            self.entries = {key: _outdated(entry) for key, entry in self.entries.items()}
        self._begun = False
        self._restart = restart and bool(self.entries)

    @staticmethod
    def look(path: str, identity: Identity, *, restart: bool = False) -> dict[str, Entry]:
        """What the journal at ``path`` knows, if there is one, without taking it."""
        try:
            entries, _, _ = _read(path, identity.id)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise JobError(f"cannot read {path}: {error.strerror or error}") from error
        return {key: _outdated(entry) for key, entry in entries.items()} if restart else entries

    @staticmethod
    def tell(path: str, edits: Iterable[tuple[str, Edit]]) -> None:
        """Add edits that were written back, each with the key of its item, to the journal at ``path`` if there is one.

        Those that it ends with already are passed over. Raises :class:`JobError` if another process holds it.
        """
        if not os.path.exists(path):  # noqa: PTH110
            return
        journal = Journal(path, Identity("", {}, {}))
        try:
            known = _edits(path)
            lines = [{"edit": key, **_told(edit)} for key, edit in edits if known.get(key) != edit]
            if lines:
                journal._append(lines)
        finally:
            journal.close()

    def add(self, entries: Iterable[tuple[str, Entry]]) -> None:
        """Write down results, safe on the disk when this returns."""
        lines: list[Mapping[str, Any]] = []
        for key, entry in entries:
            self.entries[key] = entry
            lines.append(_line(key, entry))
        if lines:
            self._write(lines)

    def finish(self, done: int, failed: int) -> None:
        """Write down that the job went through everything."""
        if not (self.finished and not self._begun):  # a run that found nothing to do leaves the journal as it is
            self._write([{"finished": _now(), "done": done, "failed": failed}])
        self.finished = True

    def close(self) -> None:
        """Let others have it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, lines: list[Mapping[str, Any]]) -> None:
        if not self._begun:
            head: dict[str, Any] = {"job": self.identity.id, "command": self.identity.command}
            head |= {"model": dict(self.identity.model), "options": dict(self.identity.options), "started": _now()}
            lines = [head | ({"restart": True} if self._restart else {}), *lines]
            self._begun = True
        self._append(lines)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        data = b"".join(_encode(line) for line in lines)
        with _telling(self.path):
            end = os.fstat(self._file).st_size
            try:
                while data:
                    data = data[os.write(self._file, data) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)  # the part of a line that still fitted on the disk
                raise

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobError(f"another job is writing there (it holds {self.path}): wait for it, or end it") from None
            except OSError:  # a file system without locks
                pass


def _read(path: str, job: str) -> tuple[dict[str, Entry], bool, int]:
    """The entries of a job, whether it finished, and how many bytes of the file are whole lines."""
    entries: dict[str, Entry] = {}
    whole, own, finished = 0, False, False
    with open(path, "rb") as file:  # noqa: PTH123 (any bytes may be in its name)
        for raw in file:
            line = _decode(raw)
            if line is None:
                break
            whole += len(raw)
            if "job" in line:
                own = line["job"] == job
                if own and line.get("restart"):
                    entries = {key: _outdated(entry) for key, entry in entries.items()}
            elif own and "item" in line:
                entries[line["item"]] = _entry(line)
            elif "edit" in line:  # whichever job wrote what was edited
                if (entry := entries.get(line["edit"])) is not None:
                    entries[line["edit"]] = replace(entry, edits=(*entry.edits, _edit(line)))
                continue
            if own:
                finished = "finished" in line
        if file.read():  # a torn line is the last one; anything else is no journal, or a damaged one
            raise JobError(f"{path} is no journal, or damaged at byte {whole}: move it away")
    return entries, finished, whole


def _line(key: str, entry: Entry) -> dict[str, Any]:
    line: dict[str, Any] = {"item": key, "picture": entry.picture}
    if entry.before is not None:
        line["before"] = entry.before
    if entry.written:
        line["written"] = entry.written
    return line | ({"error": entry.error, "kind": entry.kind} if entry.error else {"records": list(entry.records)})


def _entry(line: Mapping[str, Any]) -> Entry:
    return Entry(
        line.get("picture", ""), line.get("before"), tuple(line.get("records", ())), line.get("error"),
        line.get("kind", ""), line.get("written", ""),
    )  # fmt: skip


def _edit(line: Mapping[str, Any]) -> Edit:
    return Edit(line.get("was", ""), line.get("text", ""), line.get("written", ""))


def _told(edit: Edit) -> dict[str, Any]:
    return {"was": edit.was, "text": edit.text} | ({"written": edit.written} if edit.written else {})


def _edits(path: str) -> dict[str, Edit]:
    """The last edit of every item that has not been written anew since."""
    found: dict[str, Edit] = {}
    with open(path, "rb") as file:  # noqa: PTH123
        for line in map(_decode, file):
            if line is not None and "edit" in line:
                found[line["edit"]] = _edit(line)
            elif line is not None and "item" in line:
                found.pop(line["item"], None)
    return found


def _outdated(entry: Entry) -> Entry:
    return replace(entry, stale=True)


def _encode(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # bytes of a file that are no UTF-8
        return json.dumps(line).encode() + b"\n"


def _decode(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    with contextlib.suppress(ValueError):
        line = json.loads(raw)
        return line if isinstance(line, dict) else None
    return None


@contextlib.contextmanager
def _telling(path: str) -> Any:
    try:
        yield
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}; the job goes on when run again") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
