"""Captions and dates that images have before they are indexed (no torch).

| Caption | Where |
| --- | --- |
| record | the list that names the image: its caption column |
| sidecar | `photo.txt`, `photo.caption`, and the XMP files `photo.xmp` and `photo.jpg.xmp` |
| metadata | a description inside the image: XMP, EXIF, IPTC, PNG |

The first one counts.
"""

from __future__ import annotations

import datetime
import mmap
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from openblip.data.records import Record
from openblip.errors import ImageError, JobError
from openblip.jobs.descriptions import find_description, read_side_car, side_cars_of
from openblip.jobs.items import Fields, Item, file_stamp
from openblip.preprocess.files import identify
from openblip.search.images import CaptionSource

_TEXT_SUFFIXES = (".txt", ".caption")
_MAX_CHARACTERS = 10_000  # of a caption; a longer text file is no caption of the image
_EXIF_IFD, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132
_EXIF_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")


def caption_fields(record: Record) -> Iterable[Fields]:
    """Return the captions of a record in a list, as the field of its item."""
    return [{"caption": "; ".join(record.captions)} if record.captions else {}]


def stamp_caption(item: Item, path: str) -> str:
    """Return a text that changes when the caption in a list or next to an image changes.

    Args:
        item: The image.
        path: Its path.
    """
    if text := item.fields.get("caption"):
        return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
    stem = os.path.splitext(path)[0]  # noqa: PTH122 (a hundred thousand files)
    places = [*(stem + suffix for suffix in _TEXT_SUFFIXES), *side_cars_of(path)]
    return " ".join(stamp for stamp in map(file_stamp, places) if stamp)


def read_caption(item: Item, path: str) -> tuple[str | None, CaptionSource]:
    """Return the caption of an image, and where it is from.

    Args:
        item: The image.
        path: Its path.
    """
    if text := item.fields.get("caption"):
        return _shorten(text), "record"
    stem = os.path.splitext(path)[0]  # noqa: PTH122
    for suffix in _TEXT_SUFFIXES:
        with suppress(OSError):
            content = Path(stem + suffix).read_bytes()[: 4 * _MAX_CHARACTERS].decode("utf-8-sig", "replace")
            lines = [line.strip() for line in content.splitlines() if line.strip()]
            if lines:
                return _shorten("; ".join(lines)), "sidecar"
    for side_car in side_cars_of(path):
        with suppress(JobError):  # it is damaged
            if text := read_side_car(side_car):
                return _shorten(text), "sidecar"
    with (
        suppress(ImageError, OSError, ValueError),  # the file has another format, or is damaged or empty
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        if text := find_description(view):
            return _shorten(text), "metadata"
    return None, ""


def _shorten(text: str) -> str:
    """Return a caption in one line."""
    return " ".join(text.split())[:_MAX_CHARACTERS]


def read_date(path: str, stamp: str) -> str:
    """Return when a photo was taken, as its EXIF says, otherwise when its file was changed.

    Args:
        path: The file.
        stamp: Its size and time, of [`file_stamp`][openblip.jobs.items.file_stamp].

    Returns:
        The local date and time, such as "2024-05-17T18:30:00".
    """
    with suppress(Exception), Path(path).open("rb") as file:  # Pillow raises errors of many types for damaged metadata
        image = identify(file)
        if image is not None:
            exif = image.getexif()
            for text in (exif.get_ifd(_EXIF_IFD).get(_TAKEN), exif.get(_CHANGED)):
                if match := _EXIF_DATE.match(str(text)):
                    return datetime.datetime(*map(int, match.groups())).isoformat()  # type: ignore[arg-type]
    changed = int(stamp.rpartition(":")[2]) / 1e9
    return datetime.datetime.fromtimestamp(changed).isoformat(timespec="seconds")
