"""The report of an evaluation: an HTML page with images, predictions and references, worst items first."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openblip.drawing import Edges, draw_boxes
from openblip.errors import ImageError
from openblip.evaluation.files import write_text
from openblip.evaluation.tables import Interval, MetricRow, format_table, make_rows
from openblip.io.templates import render_html
from openblip.preprocess.image import ImageSource, load_image
from openblip.preprocess.video import is_video, load_frames

THUMBNAIL_SIZE = 320
"""Longest edge of a thumbnail, in pixels."""
MAX_ITEMS = 300
"""Most items on the page. Metrics are those of all items."""
BOX_COLORS = ("#d55e00", "#0072b2")
"""Colors of the predicted and the reference box. Color-blind readers can distinguish them."""


@dataclass(frozen=True)
class ReportItem:
    """One item of the report.

    Attributes:
        id: Id of the item.
        image: Path of its image or video.
        lines: Pairs of name and text.
        score: The score, which orders items, lowest first; `None` for an item that failed.
        second_image: Path of the second image of a pair.
        metric: Name of the score.
        boxes: Boxes to draw in the image, by name: left, top, right and bottom in pixels.
        by_server: Whether only the official server can score the item.
        rival_score: The score of a second system, to compare with.
        content: The image, or a file object that reads it, if it has no file of its own.
    """

    id: object
    image: str
    lines: Sequence[tuple[str, str]]
    score: float | None
    second_image: str = ""
    metric: str = ""
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    by_server: bool = False
    rival_score: float | None = None
    content: ImageSource | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Thumbnail:
    """A small image: its path and the JPEG file in base64, or the reason why it cannot be read."""

    path: str
    data: str = ""
    error: str = ""


@dataclass(frozen=True)
class Card:
    """An item on the page, with its thumbnails, the text of its score, and its sort keys."""

    item: ReportItem
    images: Sequence[Thumbnail]
    score: str
    difference: float | None
    length: int


def write_report(
    path: Path,
    title: str,
    metrics: Mapping[str, float | None],
    notes: Sequence[str],
    items: Sequence[ReportItem],
    *,
    intervals: Mapping[str, Interval] | None = None,
) -> None:
    """Write the report as one self-contained file.

    Args:
        path: The file to write.
        title: Title of the page.
        metrics: Metrics of the evaluation; those that were not computed (`None`) are left out.
        notes: Paragraphs below the metrics; those about metrics that were not computed are left out.
        items: The items. Those without a score come first, then the lowest scores.
        intervals: The 95 % intervals of metrics.

    Raises:
        EvaluationError: If the file cannot be written.
    """
    absent = tuple(f"{name}: " for name, value in metrics.items() if value is None)
    ranked = sorted(items, key=lambda item: float("-inf") if item.score is None else item.score)
    notes = [note for note in notes if not note.startswith(absent)] if absent else notes
    _write(path, title, make_rows([metrics], [intervals or {}]), ["value"], notes, ranked)


def write_comparison(
    path: Path, title: str, rows: Sequence[MetricRow], systems: Sequence[str], items: Sequence[ReportItem]
) -> None:
    """Write a page that shows the items of one system, or of two side by side.

    Args:
        path: The file to write.
        title: Title of the page.
        rows: The metrics.
        systems: The names of the systems.
        items: The items; of two systems with the score of the second one as `rival_score`. Those that the second system
            loses most on come first.

    Raises:
        EvaluationError: If the file cannot be written.
    """

    def loss(item: ReportItem) -> float:
        difference = _difference(item)
        return (0.0 if item.score is None else item.score) if difference is None else difference

    _write(path, title, rows, systems, [], sorted(items, key=loss))


def _write(
    path: Path,
    title: str,
    rows: Sequence[MetricRow],
    systems: Sequence[str],
    notes: Sequence[str],
    ranked: Sequence[ReportItem],
) -> None:
    compared = len(systems) == 2
    half = MAX_ITEMS // 2
    selected = ranked[:MAX_ITEMS]
    if compared and len(ranked) > MAX_ITEMS:  # the largest losses and the largest gains
        selected = [*ranked[:half], *ranked[-half:]]
    html = render_html(
        "openblip.evaluation",
        "report.html",
        title=title,
        rows=rows,
        systems=systems,
        compared=compared,
        has_intervals=any(interval is not None for row in rows for interval in row.intervals),
        csv=format_table(rows, systems, "csv"),
        latex=format_table(rows, systems, "tex"),
        notes=notes,
        cards=[_make_card(item) for item in selected],
        which="The largest losses and gains, " if compared else "The worst",
        total=len(ranked),
    )
    write_text(path, html)


def _make_card(item: ReportItem) -> Card:
    images = [_make_thumbnail(item.image, item.boxes, item.content)] if item.image or item.content is not None else []
    if item.second_image:
        images.append(_make_thumbnail(item.second_image, item.boxes))
    score = "the server scores it" if item.by_server else "no result"
    if item.score is not None:
        score = f"{item.metric} {item.score:.3f}".strip()
        if item.rival_score is not None:
            score += f" → {item.rival_score:.3f}"
    length = len(item.lines[0][1]) if item.lines else 0
    return Card(item, images, score, _difference(item), length)


def _difference(item: ReportItem) -> float | None:
    if item.score is None or item.rival_score is None:
        return None
    return item.rival_score - item.score


def _make_thumbnail(path: str, boxes: Mapping[str, Sequence[float]], content: ImageSource | None = None) -> Thumbnail:
    try:
        if content is None and is_video(path):
            image = next(load_frames(path))
        else:
            image = load_image(path if content is None else content)
    except ImageError as error:
        return Thumbnail(path, error=str(error))
    width, height = image.size
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    if boxes:
        x_scale, y_scale = image.width / width, image.height / height
        scaled: list[Edges] = []
        for left, top, right, bottom in boxes.values():
            scaled.append((left * x_scale, top * y_scale, right * x_scale, bottom * y_scale))
        image = draw_boxes(image, scaled, list(boxes), colors=BOX_COLORS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Thumbnail(path, base64.b64encode(buffer.getvalue()).decode("ascii"))
