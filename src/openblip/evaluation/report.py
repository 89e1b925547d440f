"""The report of an evaluation: one HTML file with pictures, predictions and references, worst first (no torch)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import cast

from openblip.drawing import Edges, draw_boxes
from openblip.errors import ImageError
from openblip.evaluation.files import write_text
from openblip.preprocess.image import load_image
from openblip.preprocess.video import is_video, load_frames

SIDE = 320  # pixels of a thumbnail
MOST = 300  # items shown; the numbers are of all
COLOURS = ("#d55e00", "#0072b2")  # of boxes; told apart by the colour-blind too


@dataclass(frozen=True)
class ReportItem:
    """One item of the report.

    Attributes:
        id: The id of the item.
        image: The path of its image or video.
        lines: Pairs of name and text.
        score: The score, which orders items, lowest first; ``None`` for an item that failed.
        second_image: The path of the second image of a pair.
        metric: The name of the score.
        boxes: Boxes to draw in the image, by name: left, top, right and bottom in pixels.
        by_server: Whether only the official server can score the item.
    """

    id: object
    image: str
    lines: Sequence[tuple[str, str]]
    score: float | None
    second_image: str = ""
    metric: str = ""
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    by_server: bool = False


def write_report(
    path: Path, title: str, metrics: Mapping[str, float | None], notes: Sequence[str], items: Sequence[ReportItem]
) -> None:
    """Write the report. All text is escaped; pictures are part of the file, and one that cannot be read says so."""
    ordered = sorted(items, key=lambda one: float("-inf") if one.score is None else one.score)
    shown = ordered[:MOST]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{_number(value)}</td></tr>" for name, value in metrics.items())
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    more = f"<p>The worst {len(shown)} of {len(ordered)}.</p>" if len(shown) < len(ordered) else ""
    cards = "\n".join(map(_card, shown))
    write_text(
        path,
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{escape(title)}</h1>\n<table>{rows}</table>\n{said}{more}\n<main>\n{cards}\n</main>\n</html>\n",
    )


def _card(item: ReportItem) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in item.lines)
    score = "the server scores it" if item.by_server else "no result"
    if item.score is not None:
        score = escape(f"{item.metric} {item.score:.3f}".strip())
    head = f"<p class=id><b>{score}</b> <span>{escape(str(item.id))}</span></p>"
    pictures = "".join(_picture(path, item.boxes) for path in (item.image, item.second_image) if path)
    return f"<section><div class=pictures>{pictures}</div>{head}<dl>{lines}</dl></section>"


def _picture(path: str, boxes: Mapping[str, Sequence[float]]) -> str:
    try:
        picture = next(load_frames(path)) if is_video(path) else load_image(path)
    except ImageError as error:
        return f"<p class=bad>{escape(str(error))}</p>"
    whole = picture.size
    picture.thumbnail((SIDE, SIDE))
    if boxes:
        shares = [side / of for side, of in zip(picture.size, whole, strict=True)] * 2
        places = [tuple(edge * share for edge, share in zip(box, shares, strict=True)) for box in boxes.values()]
        picture = draw_boxes(picture, cast("list[Edges]", places), list(boxes), colours=COLOURS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="" title="{escape(path, quote=True)}">'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"  # noqa: RUF001 (a dash is meant)


_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#222}table{border-collapse:collapse}"
    "td{padding:.15rem 1rem .15rem 0}main{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));"
    "gap:1.2rem}section{border:1px solid #ddd;border-radius:6px;padding:.7rem;overflow-wrap:anywhere}dt{color:#666;"
    "font-size:.85em}dd{margin:0 0 .4rem}.bad{color:#a00}.id{margin:.4rem 0}.id span{color:#666;font-size:.85em}"
    ".pictures{display:flex;gap:4px;align-items:flex-start}.pictures>*{min-width:0;flex:0 1 auto;max-width:100%}"
    "dl{margin:0}"
)
