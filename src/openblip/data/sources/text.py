"""Annotation files of text: JSON in the published layouts, JSONL, CSV and TSV."""

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

LAYOUTS = (
    'a list of rows, or {"images": [{"filename", "sentences": [{"raw"}]}]} (Karpathy), '
    'or {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} (COCO), '
    'or {"data": {"questions", "answers", "dialogs"}} (VisDial)'
)


def open_jsonl(
    path: str, *, images: str | None = None, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Table:
    """One JSON object for each line; blank lines are passed over. A record's address is ``path:line``."""
    builder = TableBuilder(path, Locator(_root(path, images)), columns, keep)
    for number, line in enumerate(io.BytesIO(read_bytes(path)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            builder.reject(f":{number}", "the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            builder.reject(f":{number}", f"the line is not JSON ({error})")
        else:
            builder.add(f":{number}", row)
    return builder.build()


def open_csv(
    path: str, *, images: str | None = None, columns: Columns | None = None, keep: Sequence[str] = ()
) -> Table:
    """A table with a header, split at commas (tabs in ``.tsv``). A record's address is ``path:line``."""
    builder = TableBuilder(path, Locator(_root(path, images)), columns, keep)
    # Undecodable bytes come through as surrogates, so that one of them costs its row and not the file.
    text = read_bytes(path).decode("utf-8-sig", "surrogateescape").replace("\0", "\ufffd")
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.lower().endswith(".tsv") else ",")
    csv.field_size_limit(max(csv.field_size_limit(), 2**27))
    for row in rows:
        where = f":{rows.line_num}"
        if None in row:
            builder.reject(where, f"the row has more fields than the header's {len(rows.fieldnames or ())}")
        elif any("\udc80" <= letter <= "\udcff" for value in row.values() for letter in value or ""):
            builder.reject(where, "the row is not UTF-8")
        else:
            builder.add(where, {name: _cell(value) for name, value in row.items()})
    return builder.build()


def open_json(
    path: str,
    *,
    images: str | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
    split: str | None = None,
) -> Table:
    """A published annotation file. A record's address is ``path[number]``.

    ``split`` takes one split of a Karpathy file; its "train" includes "restval", as the paper trains on both.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    builder = TableBuilder(path, Locator(_root(path, images)), columns, keep)
    if is_visdial(content):
        _add_dialogs(builder, content, _root(path, images))
        return builder.build()
    for number, row in _rows(path, content, split):
        builder.add(f"[{number}]", row)
    return builder.build()


def _add_dialogs(builder: TableBuilder, content: Any, root: str) -> None:
    """A row for each dialog: a question for each of its rounds, in their order."""
    split = str(content.get("split", ""))
    for number, dialog in enumerate(read_dialogs(content)):
        if isinstance(dialog, InputError):
            builder.reject(f"[{number}]", str(dialog))
            continue
        names = image_names(split, dialog.image_id)
        there = (name for name in names if is_local(root) and os.path.exists(join(root, name)))  # noqa: PTH110
        asked = [
            {
                "question": one.question,
                "answers": [one.answer],
                "wrong": [text for place, text in enumerate(one.options) if place != one.right],
            }
            for one in dialog.rounds
        ]
        row = {"image": next(there, names[0]), "captions": [dialog.caption], "qa": asked, "image_id": dialog.image_id}
        builder.add(f"[{number}]", row)


def _rows(path: str, content: Any, split: str | None) -> Iterator[tuple[int, Any]]:
    if isinstance(content, list):
        yield from enumerate(content)
        return
    listed = content.get("images") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise InputError(f"{path} has an unknown layout; known: {LAYOUTS}")
    if isinstance(annotations := content.get("annotations"), list):
        captions = defaultdict[Any, list[Any]](list)
        for annotation in annotations:
            if isinstance(annotation, dict):
                captions[annotation.get("image_id")].append(annotation.get("caption"))
        for number, entry in enumerate(listed):
            name = entry.get("file_name") or entry.get("coco_url")
            yield number, {"image": name, "captions": captions[entry.get("id")], "image_id": entry.get("id")}
        return
    wanted = {"train": ("train", "restval")}.get(split or "", (split,))
    for number, entry in enumerate(listed):
        if split is None or entry.get("split") in wanted:
            name = "/".join(filter(None, (entry.get("filepath"), entry.get("filename"))))
            yield number, {**entry, "image": name}


def _cell(value: str | None) -> Any:
    """A cell of CSV; a list is written as JSON."""
    if value is not None and value.startswith("[") and value.endswith("]"):
        try:
            listed = json.loads(value, parse_constant=lambda name: math.nan)
        except (ValueError, RecursionError):
            return value
        return listed if isinstance(listed, list) else value
    return value


def _root(path: str, images: str | None) -> str:
    return parent(path) if images is None else images
