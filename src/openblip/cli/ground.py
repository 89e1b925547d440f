"""``openblip ground``: find what expressions name in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results
from openblip.cli.drawings import Drawings
from openblip.errors import ImageError


def ground(
    images: o.Images,
    expression: Annotated[
        list[str],
        typer.Option("--expression", "-e", metavar="TEXT", help="What to find; give it again for more expressions."),
    ],
    out: o.Drawn = None,
    json: o.Json = False,
    model: o.Model = o.DEFAULT_MODEL,
    device: o.Device = "auto",
    engine: o.Engine = "torch",
    precision: o.Precision = "fp32",
    batch_size: o.BatchSize = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Find what expressions name in each picture. In Python: openblip.load(MODEL).ground(FILE, EXPRESSIONS).

    A box is left, top, right and bottom in pixels of the picture. The model must be one for grounding.

    \b
    Example:
      openblip ground street.jpg -e "the man on the left" -e "red car" --out found.png --model base
    """
    from openblip.drawing import draw_boxes
    from openblip.preprocess.image import load_image

    drawings = Drawings(out, len(images)) if out else None
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)

    def lines() -> Iterator[Line]:
        for image in images:
            try:
                picture = load_image(image)
                found = blip.ground(picture, expression)
            except ImageError as error:
                yield Line(image, error=error)
                continue
            names = [f"{named} {box.probability:.2f}" for named, box in zip(expression, found, strict=True)]
            boxes = [box.edges for box in found]
            drawn = {"drawing": str(drawings.save(image, draw_boxes(picture, boxes, names)))} if drawings else {}
            for named, box in zip(expression, found, strict=True):
                edges = [f"{edge:.0f}" for edge in box.edges]
                cells = [named, *edges, f"{box.probability:.3f}", *drawn.values()]
                yield Line(image, cells, {"expression": named, **asdict(box), **drawn})

    columns = ["expression", "left", "top", "right", "bottom", "probability", *(["drawing"] if drawings else [])]
    print_results(columns, lines(), len(images), as_json=json)
