"""Annotation files in text formats: JSON in the published layouts, JSONL, CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from openblip.data.files import is_local, join, parent, read_bytes
from openblip.data.images import Locator
from openblip.data.schema import Columns
from openblip.data.sources.table import Table, TableBuilder
from openblip.data.visdial import image_names, is_visdial, read_dialogs
from openblip.errors import InputError
from openblip.io import jsonlines

LAYOUTS = (
    'a list of rows, or {"images": [{"filename", "sentences": [{"raw"}]}]} (Karpathy), '
    'or {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} (COCO), '
    'or {"data": {"questions", "answers", "dialogs"}} (VisDial)'
)
_LARGEST_CELL = 2**27  # bytes; the default of `csv` is 2**17


def open_jsonl(
    path: str, *, images: str | None = None, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Table:
    """Open a file with one JSON object per line; a record's address is `path:line`.

    Args:
        path: The file, local or remote.
        images: Folder for relative image paths; by default the folder of the file.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.

    Returns:
        The records of the file; blank lines are skipped.
    """
    builder = TableBuilder(path, Locator(_image_root(path, images)), columns, keep)
    for line in jsonlines.iter_lines(read_bytes(path)):
        position = f":{line.number}"
        try:
            row = jsonlines.decode(line.content)
        except UnicodeDecodeError:
            builder.reject(position, "the line is not UTF-8")
        except ValueError as error:
            builder.reject(position, f"the line is not JSON ({error})")
        else:
            builder.add(position, row)
    return builder.build()


def open_csv(
    path: str, *, images: str | None = None, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Table:
    """Open a table with a header, split at commas (at tabs in `.tsv`); a record's address is `path:line`.

    Args:
        path: The file, local or remote.
        images: Folder for relative image paths; by default the folder of the file.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.

    Returns:
        The records of the file.
    """
    builder = TableBuilder(path, Locator(_image_root(path, images)), columns, keep)
    # Undecodable bytes become surrogates, so that they cost one row rather than the file.
    text = read_bytes(path).decode("utf-8-sig", "surrogateescape").replace("\0", "\ufffd")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.lower().endswith(".tsv") else ",")
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_CELL))
    header = next(rows, [])
    for cells in rows:
        if not cells:  # a blank line
            continue
        row = decode_csv_row(header, cells)
        if isinstance(row, str):
            builder.reject(f":{rows.line_num}", row)
        else:
            builder.add(f":{rows.line_num}", row)
    return builder.build()


def decode_csv_row(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | str:
    """Return the values of a row by column, with lists parsed from JSON.

    Args:
        header: Names of the columns.
        cells: Cells of the row, whose undecodable bytes are surrogates.

    Returns:
        Values by column, or the reason why the row cannot be used.
    """
    if len(cells) > len(header):
        return f"the row has more fields than the header's {len(header)}"
    if any("\udc80" <= letter <= "\udcff" for value in cells for letter in value):
        return "the row is not UTF-8"
    values: dict[str, Any] = dict.fromkeys(header)
    return values | {name: _parse_cell(value) for name, value in zip(header, cells, strict=False)}


def open_json(
    path: str,
    *,
    images: str | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
    split: str | None = None,
) -> Table:
    """Open a published annotation file; a record's address is `path[number]`.

    Args:
        path: The file, local or remote.
        images: Folder for relative image paths; by default the folder of the file.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.
        split: A split of a Karpathy file; "train" includes "restval", as in the paper.

    Returns:
        The records of the file.

    Raises:
        InputError: If the file is not JSON, or has an unknown layout.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    builder = TableBuilder(path, Locator(_image_root(path, images)), columns, keep)
    if is_visdial(content):
        _add_dialogs(builder, content, _image_root(path, images))
        return builder.build()
    for number, row in _rows(path, content, split):
        builder.add(f"[{number}]", row)
    return builder.build()


def _add_dialogs(builder: TableBuilder, content: Any, root: str) -> None:
    """Add a row per dialog, with a question per round, in order."""
    split = str(content.get("split", ""))
    for number, dialog in enumerate(read_dialogs(content)):
        if isinstance(dialog, InputError):
            builder.reject(f"[{number}]", str(dialog))
            continue
        names = image_names(split, dialog.image_id)
        existing = (name for name in names if is_local(root) and os.path.exists(join(root, name)))  # noqa: PTH110
        questions = [
            {
                "question": turn.question,
                "answers": [turn.answer],
                "wrong": [text for index, text in enumerate(turn.options) if index != turn.right],
            }
            for turn in dialog.rounds
        ]
        row = {
            "image": next(existing, names[0]),
            "captions": [dialog.caption],
            "qa": questions,
            "image_id": dialog.image_id,
        }
        builder.add(f"[{number}]", row)


def _rows(path: str, content: Any, split: str | None) -> Iterator[tuple[int, Any]]:
    if isinstance(content, list):
        yield from enumerate(content)
        return
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(entry, dict) for entry in images):
        raise InputError(f"{path} has an unknown layout; known layouts: {LAYOUTS}")
    if isinstance(annotations := content.get("annotations"), list):
        captions = defaultdict[Any, list[Any]](list)
        for annotation in annotations:
            if isinstance(annotation, dict):
                captions[annotation.get("image_id")].append(annotation.get("caption"))
        for number, entry in enumerate(images):
            name = entry.get("file_name") or entry.get("coco_url")
            yield number, {"image": name, "captions": captions[entry.get("id")], "image_id": entry.get("id")}
        return
    splits = ("train", "restval") if split == "train" else (split,)
    for number, entry in enumerate(images):
        if split is None or entry.get("split") in splits:
            name = "/".join(filter(None, (entry.get("filepath"), entry.get("filename"))))
            yield number, {**entry, "image": name}


def _parse_cell(value: str | None) -> Any:
    """Return a cell of a CSV file, with a list parsed from JSON."""
    if value is not None and value.startswith("[") and value.endswith("]"):
        try:
            parsed = json.loads(value, parse_constant=lambda name: math.nan)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, list) else value
    return value


def _image_root(path: str, images: str | None) -> str:
    return parent(path) if images is None else images
