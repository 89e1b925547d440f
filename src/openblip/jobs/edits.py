"""Write edits from a contact sheet back to the captions' files.

Each line of an edits file is one edit: it replaces the text `was` of the image `path` by `text`. The text is
located by `to`, `place` and `key`: the format, the file, and the key in that file. `journal` and `item` are
the job's journal, which records the edit, and the image's key in it. Text that changed since then is not
overwritten.

A line {"path", "mark": "exclude", "image", "place", "base"} marks an image: it can be moved to another folder.

`base` is the folder that the job ran in. If `place` is gone because folders were moved, the same path is looked for
below the current folder, and below the folders that the user names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from openblip.errors import JobError, OpenBlipError
from openblip.io import jsonlines
from openblip.jobs.items import file_stamp
from openblip.jobs.journal import Edit, Journal
from openblip.jobs.sinks import SINKS, SinkOptions, open_sink

BASE = "base"  # the field that older sheets lack
MARK = "mark"
MARK_FIELDS = ("path", MARK, "image", "place", BASE)
FIELDS = ("path", "was", "text", "to", "place", "key", "journal", "item")
_FILE_PER_IMAGE = ("sidecar", "metadata")


def move_excluded(files: Iterable[Path], target: Path, folders: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Move the images that are marked in `files`, with their sidecar texts. An image that was moved earlier is done.

    Args:
        files: JSON Lines files exported by contact sheets.
        target: Folder to move to. Images keep their paths below the folder that the job ran in.
        folders: Folders that the images were moved to since.

    Returns:
        The number of images that are in `target` now, and one message for each image that could not be moved.

    Raises:
        JobError: A file cannot be read or contains a line that is not an edit.
    """
    moved, notes = 0, list[str]()
    for mark in (line for file in files for line in _read_lines(file) if MARK in line):
        image = mark["image"]
        relative = os.path.relpath(image, mark[BASE])
        inside = os.path.basename(image) if relative.startswith(os.pardir) else relative  # noqa: PTH119
        destination = target / inside
        if not os.path.exists(image):  # noqa: PTH110
            image = _find_moved(image, mark[BASE], folders) or image
        if os.path.exists(image) and os.path.exists(destination):  # noqa: PTH110
            notes.append(f"{mark['path']}: {destination} exists, and is not replaced")
            continue
        try:
            if os.path.exists(image):  # noqa: PTH110
                destination.parent.mkdir(parents=True, exist_ok=True)
                text = _find_moved(mark["place"], mark[BASE], folders) if mark["place"] else None
                text = mark["place"] if os.path.exists(mark["place"]) else text  # noqa: PTH110
                shutil.move(image, destination)
                if text is not None and text != image:
                    shutil.move(text, destination.with_suffix(os.path.splitext(text)[1]))  # noqa: PTH122
        except OSError as error:
            notes.append(f"{mark['path']}: cannot be moved to {destination}: {error.strerror or error}")
            continue
        if destination.exists():
            moved += 1
        else:
            notes.append(f"{mark['path']}: {image or 'it has no file, and'} does not exist")
    return moved, notes


def count_excluded(files: Iterable[Path]) -> int:
    """Return the number of images that are marked in `files`.

    Raises:
        JobError: A file cannot be read or contains a line that is not an edit.
    """
    return sum(MARK in line for file in files for line in _read_lines(file))


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
        for edit in _read_lines(file):
            if MARK in edit:
                continue
            edit = _relocate(edit, folders)
            out = "" if edit["to"] in _FILE_PER_IMAGE else edit["place"]
            groups.setdefault((edit["to"], out), []).append(edit)
    applied, notes = 0, list[str]()
    for (to, out), edits in groups.items():
        missing = [edit for edit in edits if _is_missing(edit)]
        for edit in missing:
            hint = "if its folder was moved, name the new folder: openblip caption FOLDER --apply EDITS.jsonl"
            notes.append(f"{edit['path']}: {edit['place']} does not exist; {hint}")
        edits = [edit for edit in edits if edit not in missing]
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
    # The journal moved with the same folder: make the same replacement in the path of the text.
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


def _is_missing(edit: Mapping[str, str]) -> bool:
    """Return whether the file of an edit is gone. A text that is new has no file yet, but a folder."""
    place = edit["place"]
    if not edit["was"].strip() and edit["to"] == "sidecar":
        place = os.path.dirname(place)  # noqa: PTH120
    return bool(place) and not os.path.exists(place)  # noqa: PTH110


def _read_lines(file: Path) -> Iterator[Mapping[str, str]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise JobError(f"cannot read the edits {file}: {error.strerror or error}") from error
    for line in jsonlines.iter_lines(content):
        try:
            edit = jsonlines.decode(line.content)
        except ValueError as error:
            raise JobError(f"{file}:{line.number} is not JSON: {error}") from error
        if isinstance(edit, dict) and all(isinstance(edit.get(name), str) for name in MARK_FIELDS):
            yield edit
            continue
        complete = isinstance(edit, dict) and all(isinstance(edit.get(name), str) for name in FIELDS)
        if not complete or edit["to"] not in SINKS:
            raise JobError(
                f"{file}:{line.number} must be an edit with the fields {', '.join(FIELDS)}; export edits from the "
                "contact sheet of a job with --to"
            )
        yield edit
