"""Edits made in a contact sheet, written back to where the captions are.

A line of the file is one edit: ``was`` and ``text`` are what was said and what is to be said about the picture
``path``, and ``to``, ``place`` and ``key`` where that is written. What somebody else has changed there since is left.
``journal`` and ``item`` are the job's journal, which is told of the edit, and what it calls the picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from openblip.errors import JobError, OpenBlipError
from openblip.jobs.items import stamp
from openblip.jobs.journal import Edit, Journal
from openblip.jobs.sinks import SINKS, Writing, open_sink

FIELDS = ("path", "was", "text", "to", "place", "key", "journal", "item")
_ONE_FILE = ("sidecar", "metadata")


def apply_edits(files: Iterable[Path]) -> tuple[int, list[str]]:
    """Write all edits of ``files``; how many are in their places now, and a line for each that could not be written.

    An edit that was applied before is not applied again. Raises :class:`JobError` for a file that holds no edits.
    """
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for file in files:
        for edit in _read(file):
            groups.setdefault((edit["to"], "" if edit["to"] in _ONE_FILE else edit["place"]), []).append(edit)
    done, notes = 0, list[str]()
    for (to, place), edits in groups.items():
        sink = open_sink(to, Writing(out=place or None, asked=("prompt",)))
        told: dict[str, list[tuple[str, Edit]]] = {}
        for edit in edits:
            try:
                fits = sink.edit(edit["place"], edit["key"], edit["was"], edit["text"])
            except OpenBlipError as error:
                notes.append(f"{edit['path']}: {error}")
                continue
            done += fits
            if not fits:
                notes.append(f"{edit['path']}: what {edit['place']} says was changed since, and is left as it is")
                continue
            written = stamp(edit["place"]) if sink.writes_pictures else ""
            told.setdefault(edit["journal"], []).append((edit["item"], Edit(edit["was"], edit["text"], written)))
        sink.close()
        for journal, these in told.items():
            Journal.tell(journal, these)
    return done, notes


def _read(file: Path) -> Iterator[Mapping[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"cannot read the edits {file}: {getattr(error, 'strerror', None) or error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            edit = json.loads(line)
        except ValueError as error:
            raise JobError(f"{file}:{number} is no JSON: {error}") from error
        whole = isinstance(edit, dict) and all(isinstance(edit.get(name), str) for name in FIELDS)
        if not whole or edit["to"] not in SINKS:
            raise JobError(
                f"{file}:{number} is no edit that can be written back: it needs {', '.join(FIELDS)}, as the sheet of a "
                "job with --to exports them"
            )
        yield edit
