"""Write edits from a contact sheet back to the captions' files.

Each line of an edits file is one edit: it replaces the text `was` of the image `path` by `text`. The text is
located by `to`, `place` and `key`: the format, the file, and the key in that file. `journal` and `item` are
the job's journal, which records the edit, and the image's key in it. Text that changed since then is not
overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from openblip.errors import JobError, OpenBlipError
from openblip.io import jsonlines
from openblip.jobs.items import file_stamp
from openblip.jobs.journal import Edit, Journal
from openblip.jobs.sinks import SINKS, SinkOptions, open_sink

FIELDS = ("path", "was", "text", "to", "place", "key", "journal", "item")
_FILE_PER_IMAGE = ("sidecar", "metadata")


def apply_edits(files: Iterable[Path]) -> tuple[int, list[str]]:
    """Write back all edits of `files`. An edit that was applied earlier is not applied again.

    Args:
        files: JSON Lines files exported by contact sheets.

    Returns:
        The number of edits that are stored now, and one message for each edit that could not be applied.

    Raises:
        JobError: A file cannot be read or contains a line that is not an edit.
    """
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for file in files:
        for edit in _read_edits(file):
            out = "" if edit["to"] in _FILE_PER_IMAGE else edit["place"]
            groups.setdefault((edit["to"], out), []).append(edit)
    applied, notes = 0, list[str]()
    for (to, out), edits in groups.items():
        sink = open_sink(to, SinkOptions(out=out or None, key_fields=("prompt",)))
        journal_edits: dict[str, list[tuple[str, Edit]]] = {}
        for edit in edits:
            try:
                stored = sink.write_edit(edit["place"], edit["key"], edit["was"], edit["text"])
            except OpenBlipError as error:
                notes.append(f"{edit['path']}: {error}")
                continue
            if not stored:
                notes.append(f"{edit['path']}: the text in {edit['place']} was changed since; edit not applied")
                continue
            applied += 1
            written = file_stamp(edit["place"]) if sink.writes_images else ""
            entry = Edit(edit["was"], edit["text"], written)
            journal_edits.setdefault(edit["journal"], []).append((edit["item"], entry))
        sink.close()
        for journal, entries in journal_edits.items():
            Journal.add_edits(journal, entries)
    return applied, notes


def _read_edits(file: Path) -> Iterator[Mapping[str, str]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise JobError(f"cannot read the edits {file}: {error.strerror or error}") from error
    for line in jsonlines.iter_lines(content):
        try:
            edit = jsonlines.decode(line.content)
        except ValueError as error:
            raise JobError(f"{file}:{line.number} is not JSON: {error}") from error
        complete = isinstance(edit, dict) and all(isinstance(edit.get(name), str) for name in FIELDS)
        if not complete or edit["to"] not in SINKS:
            raise JobError(
                f"{file}:{line.number} must be an edit with the fields {', '.join(FIELDS)}; export edits from the "
                "contact sheet of a job with --to"
            )
        yield edit
