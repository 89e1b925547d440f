"""`openblip explain`: show which parts of an image the model used for each word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

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
    from openblip.pipelines.explain import ExplainedTask
    from openblip.results import Explanation


@command(
    example="""openblip explain photo.jpg -t "a man in a red coat" --draw map.png
openblip explain photo.jpg --of caption --draw map.png
openblip explain photo.jpg --of vqa -t "what is he holding?" --draw map.png"""
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
    "--of",
    type=click.Choice(["retrieval", "caption", "vqa"]),
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
    of: str | None,
    answer: str | None,
    layer: int | None,
    input: InputOptions,
    draw: Path | None,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Show where the model looked for each word (Grad-CAM). In Python: openblip.load(MODEL).explain(IMAGE, TEXTS).

    Prints the position of the strongest patch for each word, in percent from the left and the top edge. --draw draws
    the heat maps; --json and --to return them as numbers.
    """
    job = Job("explain", images, input, output, model)
    what = cast("ExplainedTask", of or ("retrieval" if text else "caption"))
    if what != "caption" and not text:
        raise click.UsageError(f"--of {what} requires --text")
    drawings = Drawings(draw, alone=job.lone, each=len(text or [None])) if draw else None
    options = {"task": what, "answer": answer, "layer": layer}

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.explanations import explanations, record

        items, asked = tee(items)
        found = explanations(job.blip, asked, list(text) or None, frame=input.frame, **options)
        for item, result in zip(items, found, strict=True):
            if not isinstance(result, list):
                yield result
                continue
            try:
                drawn = _drawn(drawings, item, input.frame, result) if drawings else [{}] * len(result)
            except ImageError as error:  # it went away in the meantime
                yield error
                continue
            yield [record(one) | more for one, more in zip(result, drawn, strict=True)]

    job.run(
        work,
        tasks=(what,),
        options={"texts": list(text), "draw": str(draw) if draw else None} | options,
        table={name: name for name in ("word", "from left", "from top", *(["drawing"] if draw else []))},
        lines=_lines,
        concerns=lambda row: "error" in row or ("words" in row and (not text or _said(row) in text)),
        each=drawings.claim if drawings else None,
    )


def _said(row: Mapping[str, Any]) -> object:
    return row.get("question", row.get("text"))


def _drawn(drawings: Drawings, item: Item, frame: int, found: list[Explanation]) -> list[Row]:
    from openblip.drawing import draw_explanation
    from openblip.preprocess.image import load_image

    picture = load_image(item.source(frame))
    drawn = [drawings.save(item, draw_explanation(picture, one), number) for number, one in enumerate(found)]
    return [{"drawing": str(path)} for path in drawn]


def _lines(row: Row) -> Iterator[list[object]]:
    """A line for each word: where the middle of the hottest patch lies, in percent of the width and of the height."""
    for word, heat in zip(row["words"], row["maps"], strict=True):
        height, width = len(heat), len(heat[0])
        at = max(range(height * width), key=lambda place: heat[place // width][place % width])
        across, down = f"{100 * (at % width + 0.5) / width:.0f}%", f"{100 * (at // width + 0.5) / height:.0f}%"
        yield [word, across, down, *([row["drawing"]] if "drawing" in row else [])]
