"""Write edits from a contact sheet back to the captions' files.

Each line of an edits file is one edit: it replaces the text `was` of the image `path` by `text`. The text is
located by `to`, `place` and `key`: the format, the file, and the key in that file. `journal` and `item` are
the job's journal, which records the edit, and the image's key in it. Text that changed since then is not
overwritten.

`base` is the folder that the job ran in. If `place` is gone because folders were moved, the same path is looked for
below the current folder, and below the folders that the user names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from openblip.errors import JobError, OpenBlipError
from openblip.io import jsonlines
from openblip.jobs.items import file_stamp
from openblip.jobs.journal import Edit, Journal
from openblip.jobs.sinks import SINKS, SinkOptions, open_sink

BASE = "base"  # the field that older sheets lack
FIELDS = ("path", "was", "text", "to", "place", "key", "journal", "item")
_FILE_PER_IMAGE = ("sidecar", "metadata")


def apply_edits(files: Iterable[Path], folders: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Write back all edits of `files`. An edit that was applied earlier is not applied again.

    Args:
        files: JSON Lines files exported by contact sheets.
        folders: Folders that the images and their texts were moved to.

    Returns:
        The number of edits that are stored now, and one message for each edit that could not be applied.

    Raises:
        JobError: A file cannot be read or contains a line that is not an edit.
    """
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for file in files:
        for edit in _read_edits(file):
            edit = _relocate(edit, folders)
            out = "" if edit["to"] in _FILE_PER_IMAGE else edit["place"]
            groups.setdefault((edit["to"], out), []).append(edit)
    applied, notes = 0, list[str]()
    for (to, out), edits in groups.items():
        places = {edit["place"] for edit in edits}
        gone = {place for place in places if place and not os.path.exists(place)}  # noqa: PTH110
        notes += [_describe_missing(edit) for edit in edits if edit["place"] in gone]
        edits = [edit for edit in edits if edit["place"] not in gone]
        if not edits:
            continue
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


def _relocate(edit: Mapping[str, str], folders: Sequence[str]) -> Mapping[str, str]:
    """Return the edit with the present paths of its files, if they were moved together with their folder."""
    base = edit.get(BASE) or os.path.dirname(edit["place"])  # noqa: PTH120
    if not edit["place"] or os.path.exists(edit["place"]):  # noqa: PTH110
        return edit
    place = _find_moved(edit["place"], base, folders)
    if place is None:
        return edit
    # The journal moved with the same folder: replace the part of its path that was replaced in that of the text.
    old, new = edit["place"], place
    while os.path.basename(old) == os.path.basename(new) and os.path.dirname(old) != old:  # noqa: PTH119, PTH120
        old, new = os.path.dirname(old), os.path.dirname(new)  # noqa: PTH120
    journal = edit["journal"]
    if journal.startswith(old + os.sep):
        journal = os.path.join(new, os.path.relpath(journal, old))  # noqa: PTH118
    return {**edit, "place": place, "journal": journal}


def _find_moved(path: str, base: str, folders: Sequence[str]) -> str | None:
    """Return the present path of a file that was moved: the same below this folder, or its end below a named folder."""
    relative = os.path.relpath(path, base)
    if not relative.startswith(os.pardir) and os.path.exists(relative):  # noqa: PTH110
        return os.path.abspath(relative)  # noqa: PTH100
    parts = Path(path).parts
    for folder in folders:
        for start in range(1, len(parts)):  # the longest end first
            candidate = os.path.join(folder, *parts[start:])  # noqa: PTH118
            if os.path.exists(candidate):  # noqa: PTH110
                return os.path.abspath(candidate)  # noqa: PTH100
    return None


def _describe_missing(edit: Mapping[str, str]) -> str:
    return (
        f"{edit['path']}: {edit['place']} does not exist; if its folder was moved, name the new folder: "
        "openblip caption FOLDER --apply EDITS.jsonl"
    )


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
