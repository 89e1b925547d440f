"""Annotation files in text formats: JSON in the published layouts, JSONL, CSV in its dialects, and lists of paths.

The content decides about the form, not the suffix: JSON lines in a `.json`, a CSV in a `.txt`, and an array in a
`.jsonl` are read.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import os
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openblip.data.files import is_local, join, parent, read_bytes
from openblip.data.images import Locator
from openblip.data.schema import IMAGE_COLUMNS, PAIR_COLUMNS, Columns, known_columns, plain_name
from openblip.data.sources.table import Table, TableBuilder
from openblip.data.visdial import image_names, is_visdial, read_dialogs
from openblip.errors import InputError
from openblip.io import jsonlines
from openblip.preprocess.formats import is_image_name

LAYOUTS = (
    'a list of rows, or {"a.jpg": "a caption", ...}, or {"images": [{"filename", "sentences": [{"raw"}]}]} (Karpathy), '
    'or {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} (COCO), '
    'or {"data": {"questions", "answers", "dialogs"}} (VisDial)'
)
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
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
    content = _read_utf8(path)
    if _is_one_value(content):
        return open_json(path, images=images, columns=columns, keep=keep)
    return _read_jsonl(path, content, images, columns, keep)


def _read_jsonl(path: str, content: bytes, images: str | None, columns: Columns | None, keep: Sequence[str]) -> Table:
    builder = _make_builder(path, images, columns, keep)
    for line in jsonlines.iter_lines(content):
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
    """Open a table in any dialect, or a list of paths, one per line; a record's address is `path:line`.

    The table is split at the commas, semicolons, tabs or bars of its header. Lists that `str()` has written, texts such
    as "nan" for a missing value, blanks around cells, byte order marks and UTF-16 are understood. A file without a
    header is read if `columns` gives numbers: `{"image": "1", "caption": "2"}`. `Flickr8k.token.txt` needs none.

    Args:
        path: The file, local or remote.
        images: Folder for relative image paths; by default the folder of the file.
        columns: The column of a field, where it differs from the schema; its number if the file has no header.
        keep: Further columns to keep.

    Returns:
        The records of the file.

    Raises:
        InputError: If no column holds images.
    """
    content = _read_utf8(path)
    if content.lstrip()[:1] in (b"{", b"["):
        opener = open_json if _is_one_value(content) else open_jsonl
        return opener(path, images=images, columns=columns, keep=keep)
    # Undecodable bytes become surrogates, so that they cost one row rather than the file.
    text = content.decode("utf-8", "surrogateescape").replace("\0", "\ufffd")
    builder = _make_builder(path, images, columns, keep)
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_CELL))
    for line, row in _iter_csv(path, text, columns or {}, keep):
        position = f":{line}"
        if isinstance(row, str):
            builder.reject(position, row)
        else:
            builder.add(position, row)
    return builder.build()


def decode_csv_row(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | str:
    """Return the values of a row by column, with lists parsed and without blanks around them.

    Args:
        header: Names of the columns.
        cells: Cells of the row, whose undecodable bytes are surrogates.

    Returns:
        Values by column, or the reason why the row cannot be used.
    """
    if len(cells) > len(header):
        return f"the row has more fields than the header's {len(header)}"
    if any("\udc80" <= letter <= "\udcff" for value in cells for letter in value):
        return "the row is not UTF-8: save the file in this encoding"
    values: dict[str, Any] = dict.fromkeys(header)
    return values | {name: _parse_cell(value.strip()) for name, value in zip(header, cells, strict=False)}


def _iter_csv(
    path: str, text: str, columns: Columns, keep: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the number of the line and the cells of each row, or the reason why there are none."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and _TOKENS.match(lines[0]):  # Flickr8k.token.txt
        for number, line in enumerate(text.splitlines(), 1):
            token = _TOKENS.match(line)
            if token:
                yield number, {"image": token[1], "caption": token[2]}
            elif line.strip():
                yield number, "the line is not an image, a number and a caption"
        return
    if lines and not columns and all(_is_path(line, path) for line in lines[:20]):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, {"image": line.strip()}
        return
    delimiter, skipped = find_delimiter(path, text, columns, keep)
    rows = iter_cells(io.StringIO(text, newline=""), delimiter)
    numbers = sorted({int(name) for names in columns.values() for name in _names(names) if name.isdecimal()})
    header: list[str] = []
    for number, cells in rows:
        if isinstance(cells, str):
            yield number, cells
            continue
        if number <= skipped or not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if numbers and not {str(number) for number in numbers} & set(header):
                header = [str(number) for number in range(1, max(len(cells), *numbers) + 1)]
            else:
                _check_header(path, header, columns)
                continue
        yield number, decode_csv_row(header, cells)


def iter_cells(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the rows of a table.

    Args:
        lines: The lines of the table.
        delimiter: The delimiter.

    Yields:
        The number of the row's last line, and its cells. For a quote that is never closed, and would swallow the rows
        below it, the number of its line and the reason.
    """
    pending: list[str] = []

    def remember() -> Iterator[str]:
        for line in lines:
            pending.append(line)
            yield line

    rows = csv.reader(remember(), delimiter=delimiter, skipinitialspace=True)
    for cells in rows:
        count = len(pending)
        if count > 1 and _is_unclosed(pending, delimiter):
            yield rows.line_num - count + 1, f"a quote is not closed, and takes in the {count - 1} lines below"
        else:
            yield rows.line_num, cells
        pending.clear()


def _is_unclosed(lines: Iterable[str], delimiter: str) -> bool:
    try:
        list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def is_jsonl(head: bytes) -> bool:
    """Return whether a file has one JSON value per line, in UTF-8, as far as its start shows.

    Args:
        head: The start of the file, with its first line.
    """
    return not _is_wide(head) and not _is_one_value(head)


def is_csv(path: str, head: bytes, columns: Columns) -> bool:
    """Return whether a file is a table in UTF-8 with a header, whose lines end in "\\n", as far as its start shows.

    Args:
        path: The file.
        head: The start of the file, with its first line.
        columns: The column of a field, where it differs from the schema.
    """
    text = head.decode("utf-8-sig", "replace")
    if _is_wide(head) or text.lstrip().startswith(("{", "[")) or ("\r" in text and "\n" not in text):
        return False
    delimiter, skipped = find_delimiter(path, text, columns)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True), [])
    try:
        _check_header(path, [name.strip() for name in header], columns)
    except InputError:
        return False
    return not skipped


def _is_wide(head: bytes) -> bool:
    """Return whether a file is UTF-16, with or without a byte order mark."""
    return head[:2] in _WIDE_MARKS or b"\0" in head[:2]


_TOKENS = re.compile(r"([^\t]+\.\w{2,5})#\d+\t(.*)")
_DELIMITERS = ",;\t|"


def find_delimiter(path: str, text: str, columns: Columns | None = None, keep: Sequence[str] = ()) -> tuple[str, int]:
    """Return the delimiter with which the header has the most known columns, and the number of lines before it.

    Args:
        path: The file.
        text: Its content, at least with the header.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to know.
    """
    stripped = text.lstrip()
    first = stripped.split("\n", 1)[0].strip().strip('"')
    if re.fullmatch(r"sep=.", first, re.IGNORECASE):  # written by Excel
        return first[-1], text[: len(text) - len(stripped)].count("\n") + 1
    known = known_columns() | {plain_name(name) for names in (columns or {}).values() for name in _names(names)}
    known |= set(map(plain_name, keep))
    by_suffix = "\t" if path.lower().endswith((".tsv", ".tab")) else ","
    best, best_score = by_suffix, (0, 0)
    for delimiter in (by_suffix, *_DELIMITERS.replace(by_suffix, "")):
        header = next(csv.reader(io.StringIO(stripped, newline=""), delimiter=delimiter, skipinitialspace=True), [])
        score = sum(plain_name(name) in known for name in header), min(len(header), 2)
        if score > best_score:
            best, best_score = delimiter, score
    return best, 0


def _check_header(path: str, header: Sequence[str], columns: Columns) -> None:
    """Raise `InputError` if no column of a table holds images."""
    names = set(map(plain_name, header))
    mapped = [name for field in ("image", *PAIR_COLUMNS) for name in _names(columns.get(field, ()))]
    if mapped:
        missing = [name for name in mapped if plain_name(name) not in names]
        if not missing:
            return
        reason = f"has no column {missing[0]!r}"
    elif names & set(IMAGE_COLUMNS) or names >= set(PAIR_COLUMNS):
        return
    else:
        reason = "has no column of images"
    found = ", ".join(map(repr, header))
    hint = "name it with --columns image=NAME, or a pair with left=NAME,right=NAME (columns= in Python)"
    if any(is_image_name(name) for name in header):
        hint = "it seems to have no header: give the numbers of its columns, as in --columns image=1,caption=2"
    raise InputError(f"{path} {reason}: its columns are {found}; {hint}")


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _is_path(line: str, path: str) -> bool:
    """Return whether a line of a text file is the path of an image."""
    line = line.strip()
    if any(letter in line for letter in "\t|;") or not is_image_name(line):
        return False
    return "," not in line or os.path.lexists(join(parent(path), line))


def _is_one_value(content: bytes) -> bool:
    """Return whether a file is one JSON value, rather than one per line."""
    text = content.lstrip(b"\xef\xbb\xbf \r\n\t")
    if not text.startswith((b"[", b"{")):
        return False
    first_line = text.split(b"\n", 1)[0]
    try:
        value = jsonlines.decode(first_line)
    except ValueError:
        return True  # a value of several lines, or a damaged line, unless the whole cannot be read either
    if isinstance(value, dict) and not text[len(first_line) :].strip():
        images = value.get("images")
        return is_visdial(value) or (isinstance(images, list) and any(isinstance(image, dict) for image in images))
    return isinstance(value, list)


def _read_utf8(path: str) -> bytes:
    """Return the content of a text file in UTF-8, without a byte order mark. Excel and PowerShell write UTF-16."""
    content = read_bytes(path)
    if not _is_wide(content):
        return content.removeprefix(b"\xef\xbb\xbf")
    codec = "utf-16" if content[:2] in _WIDE_MARKS else "utf-16-be" if content.startswith(b"\0") else "utf-16-le"
    return content.decode(codec, "replace").encode()


def _make_builder(path: str, images: str | None, columns: Columns | None, keep: Sequence[str]) -> TableBuilder:
    return TableBuilder(path, Locator(_image_root(path, images), search=images is not None), columns, keep)


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
    raw = _read_utf8(path)
    try:
        content = json.loads(raw.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        lines = _read_jsonl(path, raw, images, columns, keep)
        if len(lines):
            return lines
        raise InputError(f"{path} is not JSON: {error}") from error
    builder = _make_builder(path, images, columns, keep)
    if is_visdial(content):
        _add_dialogs(builder, content, _image_root(path, images))
        return builder.build()
    for number, row in _rows(path, content, split):
        if isinstance(row, _Unjoined):
            reason = f"{row.count} annotations belong to no image of the file, the first to image_id {row.image_id}"
            builder.reject("", reason, kind="annotation without an image", count=row.count)
        else:
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
    if isinstance(content, dict) and any(name in content for name in IMAGE_COLUMNS if name != "images"):
        yield 0, content
        return
    if isinstance(content, dict) and content and all(map(is_image_name, content)):
        for number, (name, texts) in enumerate(content.items()):
            yield number, {**(texts if isinstance(texts, dict) else {"captions": texts}), "image": name}
        return
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(entry, dict) for entry in images):
        raise InputError(f"{path} has an unknown layout; known layouts: {LAYOUTS}")
    if isinstance(annotations := content.get("annotations"), list):
        captions = defaultdict[str, list[Any]](list)
        for annotation in annotations:
            if isinstance(annotation, dict):
                captions[_plain_id(annotation.get("image_id"))].append(annotation.get("caption"))
        for number, entry in enumerate(images):
            name = entry.get("file_name") or entry.get("coco_url")
            texts = captions.pop(_plain_id(entry.get("id")), [])
            yield number, {"image": name, "captions": texts, "image_id": entry.get("id")}
        if captions:
            yield -1, _Unjoined(next(iter(captions)), sum(map(len, captions.values())))
        return
    splits = ("train", "restval") if split == "train" else (split,)
    for number, entry in enumerate(images):
        if split is None or entry.get("split") in splits:
            name = "/".join(filter(None, (entry.get("filepath"), entry.get("filename"))))
            yield number, {**entry, "image": name}


@dataclass(frozen=True)
class _Unjoined:
    """Annotations whose image is not in the file: the id of the first image, and their number."""

    image_id: str
    count: int


def _plain_id(value: Any) -> str:
    """Return an id as a text that is equal for 7, "7", "007" and 7.0."""
    text = str(value).strip()
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _parse_cell(value: str | None) -> Any:
    """Return a cell of a CSV file, with a list parsed as JSON, as Python's `str()` writes it, or as NumPy does."""
    if value is None or not (value.startswith(("[", "(")) and value.endswith(("]", ")"))):
        return value
    if value.startswith("["):
        try:
            parsed = json.loads(value, parse_constant=lambda name: math.nan)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, list):
            return parsed
    try:
        parsed = _parse_numpy(value)
        if parsed is None:
            parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return value
    return list(parsed) if isinstance(parsed, (list, tuple)) and parsed else value


def _parse_numpy(value: str) -> list[Any] | None:
    """Return the texts or numbers of an array as NumPy writes it, without commas; `None` if there is a comma."""
    items: list[Any] = []
    sign = 1.0
    for token in tokenize.generate_tokens(io.StringIO(value).readline):
        if token.type == tokenize.STRING:
            items.append(ast.literal_eval(token.string))
        elif token.type == tokenize.NUMBER:
            items.append(sign * float(token.string))
        elif token.type == tokenize.NAME or (token.type == tokenize.OP and token.string not in "[]-"):
            return None
        sign = -1.0 if token.string == "-" else 1.0
    return items if len(items) > 1 else None


def _image_root(path: str, images: str | None) -> str:
    return parent(path) if images is None else images
