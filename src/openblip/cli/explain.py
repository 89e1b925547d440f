"""`openblip explain`: show which parts of an image the model used for each word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from openblip.cli import options as o
from openblip.cli.command import Choice, command, input_option
from openblip.cli.jobs import ImageJob
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from openblip.jobs.records import Row


@command(
    example="""openblip explain photo.jpg -t "a man in a red coat" --draw map.png
openblip explain photo.jpg --task caption --draw map.png
openblip explain photo.jpg --task vqa -t "what is he holding?" --draw map.png"""
)
@o.images_argument
@input_option(
    "-t",
    "--text",
    multiple=True,
    show_default="the model's caption",
    help="Text to match, caption or question to explain; repeat the option for more.",
)
@input_option(
    "--task",
    type=Choice(["retrieval", "caption", "vqa"]),
    show_default="retrieval, or caption without --text",
    help="Task to explain: retrieval (a match), caption, or vqa (the answer to a question).",
)
@input_option("--answer", show_default="the model's answer", help="Answer to explain.")
@input_option("--layer", type=int, show_default="the middle", help="Layer of the text transformer to explain.")
@o.input_options
@o.draw_option
@o.output_options()
@o.model_options
def explain(
    images: tuple[str, ...],
    text: tuple[str, ...],
    task: Literal["retrieval", "caption", "vqa"] | None,
    answer: str | None,
    layer: int | None,
    input: InputOptions,
    draw: Path | None,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Show which patches contribute to each word (Grad-CAM). In Python: openblip.load(MODEL).explain(IMAGE, TEXTS).

    Print the position of the strongest patch for each word, in percent from the left and the top edge. --draw draws the
    heat maps. --json and --to write them as numbers.
    """
    task = task or ("retrieval" if text else "caption")
    if task != "caption" and not text:
        raise click.UsageError(f"--task {task} requires --text")
    from openblip.jobs.explanations import ExplainAnnotator

    job = ImageJob(
        "explain",
        images,
        input,
        output,
        model,
        columns=["word", "from left", "from top", *(["drawing"] if draw else [])],
        belongs=lambda row: "error" in row or ("words" in row and (not text or explained_text(row) in text)),
    )
    drawings = job.open_drawings(draw, per_item=len(text) or 1)
    items = job.open_items()
    if drawings is not None:
        items = drawings.name_items(items)
    options = {"task": task, "answer": answer, "layer": layer}
    job_options = {"texts": list(text), "draw": str(draw) if draw else None, **options}
    with job.open_run(items, {model.model: [task]}, job_options) as run:
        annotator = ExplainAnnotator(model.load(), input.frame, text, options, drawings) if run.has_work else None
        for status in run.run(annotator):
            job.show(status, [cells for record in status.records for cells in word_cells(record)])
    job.finish(run)


def explained_text(record: Mapping[str, Any]) -> object:
    """Return the text or the question that a record explains."""
    return record.get("question", record.get("text"))


def word_cells(record: Row) -> Iterator[list[object]]:
    """Yield the cells of the table for each word: the position of its strongest patch, in percent."""
    drawing = [record["drawing"]] if "drawing" in record else []
    for word, heat_map in zip(record["words"], record["maps"], strict=True):
        height, width = len(heat_map), len(heat_map[0])
        strongest = max(range(height * width), key=lambda patch: heat_map[patch // width][patch % width])
        left = 100 * (strongest % width + 0.5) / width
        top = 100 * (strongest // width + 0.5) / height
        yield [word, f"{left:.0f}%", f"{top:.0f}%", *drawing]
