"""``openblip explain``: show where the model looked for each word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import tee
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from openblip.cli import options as o
from openblip.cli.drawings import Drawings
from openblip.cli.jobs import LISTS, Command, choice, job_command
from openblip.errors import ImageError

if TYPE_CHECKING:
    from openblip.explaining import Explained
    from openblip.jobs.items import Item
    from openblip.jobs.records import Row
    from openblip.jobs.run import Result
    from openblip.results import Explanation

OF = ("retrieval", "caption", "vqa")


@job_command(LISTS)
def explain(
    job: Command,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-t",
            metavar="TEXT",
            show_default="the model's own caption",
            help="A text to match, a caption or a question; give it again for more.",
        ),
    ] = None,
    of: Annotated[
        str,
        typer.Option(
            "--of",
            metavar="WHAT",
            show_default="retrieval, or caption without a text",
            help="Task to explain: retrieval (a match), caption, or vqa (the answer to a question).",
        ),
    ] = "",
    answer: Annotated[
        str | None,
        typer.Option("--answer", metavar="TEXT", show_default="the model's own", help="The answer to explain."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", show_default="the middle", help="Of the text transformer.")
    ] = None,
    draw: o.Draw = None,
) -> None:
    """Show where the model looked for each word (Grad-CAM). In Python: openblip.load(MODEL).explain(FILE, TEXTS).

    Prints where in the picture, in percent from its left and its top, each word has its strongest patch; --draw draws
    the heat maps, --json and --to give them as numbers.

    \b
    Example:
      openblip explain photo.jpg -t "a man in a red coat" --draw looked.png
      openblip explain photo.jpg --of caption --draw looked.png
      openblip explain photo.jpg --of vqa -t "what is he holding?" --draw looked.png
    """
    what = cast("Explained", choice("--of", of or ("retrieval" if text else "caption"), OF))
    if what != "caption" and not text:
        raise typer.BadParameter(f"--of {what} needs a --text")
    drawings = Drawings(draw, alone=job.lone, each=len(text or [None])) if draw else None
    options = {"of": what, "answer": answer, "layer": layer}

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.explanations import explanations, record

        items, asked = tee(items)
        found = explanations(job.blip, asked, text or None, frame=job.shared.frame, **options)
        for item, result in zip(items, found, strict=True):
            if not isinstance(result, list):
                yield result
                continue
            try:
                drawn = _drawn(drawings, item, job.shared.frame, result) if drawings else [{}] * len(result)
            except ImageError as error:  # it went away in the meantime
                yield error
                continue
            yield [record(one) | more for one, more in zip(result, drawn, strict=True)]

    job.run(
        work,
        tasks=(what,),
        options={"texts": text, "draw": str(draw) if draw else None} | options,
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
