"""`openblip ground`: locate what expressions name in images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from openblip.cli import options as o
from openblip.cli.command import command, input_option
from openblip.cli.jobs import ImageJob
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from openblip.jobs.records import Row


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

    Print the left, top, right and bottom edge of each box in pixels. The field bbox of a record contains left, top,
    width and height. The model must support grounding.
    """
    from openblip.jobs.answers import BoxAnnotator

    edges = ["left", "top", "right", "bottom"]
    job = ImageJob(
        "ground",
        images,
        input,
        output,
        model,
        columns=["expression", *edges, "probability", "score", *(["drawing"] if draw else [])],
        belongs=lambda row: row.get("expression") in expression or "error" in row,
    )
    drawings = job.open_drawings(draw)
    items = job.open_items()
    if drawings is not None:
        items = drawings.name_items(items)
    options = {"expressions": list(expression), "draw": str(draw) if draw else None}
    with job.open_run(items, {model.model: ["grounding"]}, options) as run:
        annotator = BoxAnnotator(model.load(), input.frame, expression, drawings) if run.has_work else None
        for status in run.run(annotator):
            job.show(status, [box_cells(record) for record in status.records])
    job.finish(run)


def box_cells(record: Row) -> list[object]:
    """Return the cells of the table for the record of a box."""
    left, top, width, height = record["bbox"]
    edges = [f"{edge:.0f}" for edge in (left, top, left + width, top + height)]
    drawing = [record["drawing"]] if "drawing" in record else []
    return [record["expression"], *edges, record["probability"], record["score"], *drawing]
