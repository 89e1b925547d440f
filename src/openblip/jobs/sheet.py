"""The contact sheet: pages that show every picture of a job with what was said about it, to read, edit and send back.

Each page is one file without anything outside it. There are at most :data:`PER_PAGE` pictures on one, so that a phone
opens it. Whatever comes from a picture, a file name or a model is escaped.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from openblip.data.files import is_local
from openblip.data.images import FileImage, ImageRef, open_image
from openblip.errors import OpenBlipError
from openblip.jobs.files import replacing
from openblip.jobs.items import Item
from openblip.jobs.run import Seen
from openblip.jobs.sinks import Sink
from openblip.jobs.sinks.base import TextSink

PER_PAGE = 500
SIDE = 240  # pixels of a thumbnail
_HEADINGS = ("question", "expression", "label")
_SCORES = {"logprob": "log p", "probability": "p", "similarity": "cos"}


def write_sheet(path: Path, seen: Sequence[Seen], sink: Sink | None) -> int:
    """Write ``path`` and, for more than one page, ``path`` with -2, -3 ... in its name; how many pages there are."""
    pages = [seen[at : at + PER_PAGE] for at in range(0, len(seen), PER_PAGE)] or [[]]
    names = [path if number == 0 else path.with_stem(f"{path.stem}-{number + 1}") for number in range(len(pages))]
    template = files("openblip.jobs").joinpath("sheet.html").read_text(encoding="utf-8")
    failed = sum(one.error is not None for one in seen)
    for number, page in enumerate(pages):
        first = number * PER_PAGE
        parts = {
            "TITLE": escape(path.stem),
            "COUNTS": escape(_counts(first, len(page), len(seen), failed)),
            "PAGES": "".join(_links([name.name for name in names], number)),
            "CARDS": "\n".join(_card(one, sink) for one in page),
            "EXPORT": escape(f"{names[number].stem}-edits.jsonl", quote=True),
        }
        text = template
        for name, content in parts.items():
            text = text.replace(f"<!--{name}-->", content)
        with replacing(str(names[number])) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    return len(pages)


def _counts(first: int, count: int, total: int, failed: int) -> str:
    shown = f"{total} pictures" if count == total else f"pictures {first + 1} to {first + count} of {total}"
    return f"{shown}, {failed} failed" if failed else shown


def _links(names: Sequence[str], current: int) -> Iterator[str]:
    if len(names) > 1:
        for number, name in enumerate(names):
            yield (
                f"<b>{number + 1}</b> "
                if number == current
                else (f'<a href="{escape(name, quote=True)}">{number + 1}</a> ')
            )


def _card(seen: Seen, sink: Sink | None) -> str:
    name = escape(seen.item.name, quote=True)
    parts = [f'<article class="{"failed" if seen.error is not None else "done"}">']
    small = [one for one in map(_thumbnail, _shown(seen)) if one is not None]
    parts += [f'<img alt="" src="data:image/jpeg;base64,{one}">' for one in small]
    parts.append(f'<p class="name" title="{name}">{name}</p>')
    if seen.error is not None:
        parts.append(f'<p class="error">{escape(seen.error)}</p>')
    else:
        parts += _texts(seen, sink)
    return "".join([*parts, "</article>"])


def _shown(seen: Seen) -> Iterable[ImageRef]:
    """The pictures of a card: what was drawn, or else what was looked at."""
    drawn = dict.fromkeys(str(row["drawing"]) for row in seen.records if "drawing" in row)
    if drawn:
        return [FileImage(path) for path in drawn]
    return seen.item.pictures if isinstance(seen.item, Item) else ()


def _texts(seen: Seen, sink: Sink | None) -> Iterator[str]:
    """What was said, each text in a field of its own where each can be written back by itself."""
    item = seen.item
    assert isinstance(item, Item)
    if isinstance(sink, TextSink):
        text = sink.read(item) or seen.text or ""
        yield _field(item, sink, text.strip(), "")
        yield from (_scores(row) for row in seen.records)
    elif not seen.records:
        yield from (_field(item, sink, text, "") for text in (seen.text or "").splitlines())
    for row in seen.records if not isinstance(sink, TextSink) else ():
        for name in _HEADINGS:
            if name in row:
                yield f'<p class="question">{escape(_said(row[name]))}</p>'
        if "text" in item.asked:
            yield f'<p class="question">{escape(item.asked["text"])}</p>'
        elif "text" in row:
            yield _field(item, sink, str(row["text"]), str(row.get("question", "")))
        yield _scores(row)


def _field(item: Item, sink: Sink | None, text: str, question: str) -> str:
    place, key = sink.edit_location(item) if sink is not None else ("", "")
    journal = os.path.abspath(sink.journal_path) if sink is not None else ""  # noqa: PTH100
    data = {
        "path": item.name, "to": sink.name if sink is not None else "", "place": place, "key": key, "was": text,
        "journal": journal, "item": item.key,
    }  # fmt: skip
    told = " ".join(f'data-{name}="{escape(value, quote=True)}"' for name, value in data.items())
    label = escape(f"{question or 'caption'} of {item.name}", quote=True)
    lines = max(2, min(10, 1 + len(text) // 22 + text.count("\n")))
    return f'<textarea rows="{lines}" aria-label="{label}" {told}>\n{escape(text)}</textarea>'


def _scores(row: object) -> str:
    assert isinstance(row, dict)
    told = [f"{label} {row[name]:.3f}" for name, label in _SCORES.items() if isinstance(row.get(name), float)]
    told += ["cut off"] if row.get("finished") is False else []
    told += ["a required word is missing"] if row.get("unmet") else []
    return f'<p class="scores">{escape(" · ".join(told))}</p>' if told else ""


def _said(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _thumbnail(picture: ImageRef) -> str | None:
    """A small JPEG as base64; ``None`` if the picture cannot be opened."""
    try:
        source = picture.read()
        if isinstance(source, str) and is_local(source):
            with Image.open(source) as image:  # a JPEG is decoded at the size that is needed
                if image.format == "JPEG" and image.getexif().get(0x0112, 1) == 1:
                    image.draft("RGB", (2 * SIDE, 2 * SIDE))
                    small = image.convert("RGB")
                else:
                    small = open_image(picture)
        else:
            small = open_image(picture)
    except (OpenBlipError, OSError, ValueError, Image.DecompressionBombError):
        return None
    except Exception:  # a decoder may raise anything for a damaged file
        return None
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=72)
    return base64.b64encode(out.getvalue()).decode()
