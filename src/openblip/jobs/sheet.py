"""The contact sheet: HTML pages that show all images of a job with their results, to review and edit.

Each page is one self-contained file with at most [`PER_PAGE`][openblip.jobs.sheet.PER_PAGE] images, so that a phone can
open it. The page exports edits, and [`apply_edits`][openblip.jobs.edits.apply_edits] writes them back.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

from openblip.data.images import FileImage, ImageRef
from openblip.errors import JobError, OpenBlipError
from openblip.io.templates import render_html
from openblip.jobs.decisions import stored_text
from openblip.jobs.files import replace_file
from openblip.jobs.items import Item, UnusableItem
from openblip.jobs.records import Row
from openblip.jobs.run import ItemStatus
from openblip.jobs.sinks import Sink
from openblip.jobs.sinks.base import TextSink
from openblip.preprocess.image import load_image

PER_PAGE = 500
"""Images on one page."""
THUMBNAIL_SIZE = 240
"""Longest edge of a thumbnail, in pixels."""

_CERTAINTY = ("confidence", "probability", "score", "logprob", "similarity")  # the first that a record has
_BROWSER_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".bmp"})
_HEADINGS = ("question", "expression", "label")
_SCORES = {
    "logprob": "log p",
    "score": "log p per token",
    "confidence": "confidence",
    "probability": "p",
    "similarity": "cos",
}


@dataclass(frozen=True)
class TextField:
    """A text to edit.

    Attributes:
        text: The text.
        label: Description for screen readers.
        num_lines: Height of the field.
        data: Location of the text; the page exports it with each edit.
    """

    text: str
    label: str
    num_lines: int
    data: Mapping[str, str]


@dataclass(frozen=True)
class CardEntry:
    """One result of an image.

    Attributes:
        headings: Texts above the field, such as the question.
        field: The text, if it can be edited.
        scores: Text below the field.
    """

    headings: Sequence[str] = ()
    field: TextField | None = None
    scores: str = ""


@dataclass(frozen=True)
class Card:
    """One image, or one pair of images, on a page.

    Attributes:
        name: Name of the image.
        thumbnails: JPEG files, base64 encoded.
        error: Reason for a failure.
        entries: The results.
        score: How certain the first result is, to sort by; `None` if it has no score.
        image: Path of the image file, or "" if the image has no file of its own.
        full: Address of the image relative to the page, or "" if browsers cannot show it.
    """

    name: str
    thumbnails: Sequence[str]
    error: str | None
    entries: Sequence[CardEntry]
    score: float | None = None
    image: str = ""
    full: str = ""


def write_sheet(path: Path, statuses: Sequence[ItemStatus], sink: Sink | None) -> int:
    """Write a contact sheet: `path` and, for further pages, `path` with -2, -3, ... added to its name.

    Args:
        path: The file of the first page.
        statuses: Status of every item of the job.
        sink: Output of the job. Without one, texts can be edited and exported, but not written back.

    Returns:
        The number of pages.

    Raises:
        JobError: If a page cannot be written.
    """
    total = len(statuses)
    pages = [statuses[start : start + PER_PAGE] for start in range(0, total, PER_PAGE)] or [[]]
    paths = [path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in range(1, len(pages) + 1)]
    num_failed = sum(status.error is not None for status in statuses)
    for index, page in enumerate(pages):
        html = render_html(
            "openblip.jobs",
            "sheet.html",
            title=path.stem,
            first=index * PER_PAGE + 1,
            total=total,
            num_failed=num_failed,
            links=[quote(os.fsencode(page_path.name)) for page_path in paths],
            current=index,
            export_name=f"{paths[index].stem}-edits.jsonl",
            base=os.getcwd(),  # noqa: PTH109
            sheet_id=_identify(page, sink),
            nonce="",
            cards=[_make_card(status, sink, path.parent) for status in page],
        )
        with replace_file(str(paths[index])) as file:
            file.write(html.encode("utf-8", "backslashreplace"))
    return len(pages)


def read_statuses(items: Iterable[Item | UnusableItem], sink: Sink) -> Iterator[ItemStatus]:
    """Yield the status of items whose results were written before, by a job or by another program.

    Args:
        items: The items.
        sink: Where their results are stored.

    Yields:
        One status per item. An item without a result has neither records nor a text.
    """
    for item in items:
        if isinstance(item, UnusableItem):
            yield ItemStatus(item, "failed", error=item.reason)
            continue
        try:
            content = sink.read(item)
        except JobError:
            raise
        except OpenBlipError as error:
            yield ItemStatus(item, "failed", error=str(error))
            continue
        rows = [row for row in content if "error" not in row] if isinstance(content, list) else []
        yield ItemStatus(item, "existing", rows, text=None if rows else stored_text(content))


def _identify(statuses: Sequence[ItemStatus], sink: Sink | None) -> str:
    """Return a name of the page's content, under which a browser keeps the edits."""
    content = [[status.item.name, status.text, [row.get("text") for row in status.records]] for status in statuses]
    values = json.dumps([content, None if sink is None else os.path.abspath(sink.journal_path)])  # noqa: PTH100
    return blake2b(values.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _make_card(status: ItemStatus, sink: Sink | None, folder: Path) -> Card:
    images: Sequence[ImageRef] = ()
    drawings = dict.fromkeys(str(row["drawing"]) for row in status.records if "drawing" in row)
    if drawings:
        images = [FileImage(drawing) for drawing in drawings]
    elif isinstance(status.item, Item):
        images = status.item.images
    thumbnails = [thumbnail for thumbnail in map(encode_thumbnail, images) if thumbnail is not None]
    entries = list(_make_entries(status, sink)) if status.error is None else []
    file = status.item.file if isinstance(status.item, Item) else None
    if file is None:
        return Card(status.item.name, thumbnails, status.error, entries, _certainty(status.records))
    image = os.path.abspath(file)  # noqa: PTH100
    full = ""
    if os.path.splitext(image)[1].lower() in _BROWSER_SUFFIXES:  # noqa: PTH122
        full = quote(os.fsencode(os.path.relpath(image, folder)))
    return Card(status.item.name, thumbnails, status.error, entries, _certainty(status.records), image, full)


def _certainty(records: Sequence[Row]) -> float | None:
    """Return the number that says best how certain the first result is."""
    values = (records[0].get(name) for name in _CERTAINTY) if records else ()
    return next((float(value) for value in values if isinstance(value, float)), None)


def _make_entries(status: ItemStatus, sink: Sink | None) -> Iterator[CardEntry]:
    """Yield an entry for each result. A text that is stored as a whole is one field, whatever the number of results."""
    item = status.item
    assert isinstance(item, Item)
    if isinstance(sink, TextSink):
        text = sink.read(item) or status.text or ""
        yield CardEntry(field=_make_field(item, sink, text.strip()))
        for row in status.records:
            yield CardEntry(scores=_format_scores(row))
        return
    if not status.records:
        for line in (status.text or "").splitlines():
            yield CardEntry(field=_make_field(item, sink, line))
    for row in status.records:
        values = [row[name] for name in _HEADINGS if name in row]
        headings = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
        field = None
        if "text" in item.fields:  # the list's own text, which is no result
            headings.append(item.fields["text"])
        elif "text" in row:
            field = _make_field(item, sink, str(row["text"]), str(row.get("question", "caption")))
        yield CardEntry(headings, field, _format_scores(row))


def _make_field(item: Item, sink: Sink | None, text: str, label: str = "caption") -> TextField:
    data = {"path": item.name, "to": "", "place": "", "key": "", "was": text, "journal": "", "item": item.key}
    if sink is not None:
        data["to"] = sink.name
        data["place"], data["key"] = sink.edit_location(item)
        data["journal"] = os.path.abspath(sink.journal_path)  # noqa: PTH100
        data["base"] = os.getcwd()  # noqa: PTH109
    num_lines = max(2, min(10, 1 + len(text) // 22 + text.count("\n")))
    return TextField(text, f"{label} of {item.name}", num_lines, data)


def _format_scores(row: Row) -> str:
    scores = [f"{label} {row[name]:.3f}" for name, label in _SCORES.items() if isinstance(row.get(name), float)]
    if row.get("finished") is False:
        scores.append("cut off")
    if row.get("unmet"):
        scores.append("a required word is missing")
    return " · ".join(scores)


def encode_thumbnail(image: ImageRef) -> str | None:
    """Return a small JPEG as base64, or `None` if the image cannot be opened."""
    try:
        thumbnail = load_image(image.read(), target_size=THUMBNAIL_SIZE)
    except (OpenBlipError, OSError):
        return None
    thumbnail.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=72)
    return base64.b64encode(buffer.getvalue()).decode()
