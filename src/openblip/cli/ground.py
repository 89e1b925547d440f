"""`openblip ground`: locate what expressions name in images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.cli import options as o
from openblip.cli.command import command, input_option
from openblip.cli.drawings import Drawings
from openblip.cli.jobs import Job
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions
from openblip.errors import ImageError

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.records import Row
    from openblip.jobs.run import Result
    from openblip.results import Box


@command(example='openblip ground street.jpg -e "the man on the left" -e "red car" --draw boxes.png --model base')
@o.images_argument
@input_option(
    "-e",
    "--expression",
    multiple=True,
    required=True,
    help="Thing to locate; repeat the option for more expressions.",
)
@o.input_options
@o.draw_option
@o.output_options()
@o.model_options
def ground(
    images: tuple[str, ...],
    expression: tuple[str, ...],
    input: InputOptions,
    draw: Path | None,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Locate what expressions name in each image. In Python: openblip.load(MODEL).ground(IMAGE, EXPRESSIONS).

    Prints the left, top, right and bottom edge of each box in pixels; the field bbox of a record holds left, top, width
    and height. The model must serve grounding.
    """
    job = Job("ground", images, input, output, model)
    drawings = Drawings(draw, alone=job.lone) if draw else None

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.answers import boxes_of

        items, asked = tee(items)
        found = boxes_of(job.blip, asked, list(expression), frame=input.frame)
        for item, boxes in zip(items, found, strict=True):
            if not isinstance(boxes, list):
                yield boxes
                continue
            try:
                drawn = _drawn(drawings, item, input.frame, list(expression), boxes) if drawings else {}
            except ImageError as error:  # it went away in the meantime
                yield error
                continue
            yield [_record(named, box) | drawn for named, box in zip(expression, boxes, strict=True)]

    edges = ("left", "top", "right", "bottom")
    job.run(
        work,
        tasks=("grounding",),
        options={"expressions": list(expression), "draw": str(draw) if draw else None},
        table={name: name for name in ("expression", *edges, "probability", *(["drawing"] if draw else []))},
        lines=lambda row: [_line(row)],
        concerns=lambda row: row.get("expression") in expression or "error" in row,
        each=drawings.claim if drawings else None,
    )


def _record(named: str, box: Box) -> Row:
    bbox = [box.left, box.top, box.right - box.left, box.bottom - box.top]
    return {"expression": named, "bbox": bbox, "probability": box.probability}


def _line(row: Row) -> list[object]:
    left, top, width, height = row["bbox"]
    edges = [f"{edge:.0f}" for edge in (left, top, left + width, top + height)]
    return [row["expression"], *edges, row["probability"], *([row["drawing"]] if "drawing" in row else [])]


def _drawn(drawings: Drawings, item: Item, frame: int, expressions: list[str], boxes: list[Box]) -> Row:
    from openblip.drawing import draw_boxes
    from openblip.preprocess.image import load_image

    drawn = draw_boxes(load_image(item.source(frame)), [box.edges for box in boxes], expressions)
    return {"drawing": str(drawings.save(item, drawn))}
