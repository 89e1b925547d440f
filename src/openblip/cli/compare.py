"""``openblip compare``: judge whether statements about two pictures are true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli.jobs import LISTS, Command, job_command

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@job_command(LISTS, pairs=True)
def compare(
    job: Command,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-t",
            metavar="TEXT",
            show_default="what the list says",
            help="What to judge; give it again for more texts.",
        ),
    ] = None,
) -> None:
    """Judge statements about two pictures. In Python: openblip.load(MODEL).compare(LEFT, RIGHT, STATEMENTS).

    Probability is that the statement is true (NLVR2). A list names the pictures of a pair as left and right, or as a
    list of two, and may have a statement as text. The model must be one for comparing.

    \b
    Example:
      openblip compare one.jpg two.jpg -t "both pictures show a dog" --model base
    """
    from openblip.data.sources.images import path_kinds
    from openblip.jobs.matches import comparisons, statements_of

    if not text and "image" in path_kinds(job.paths):
        raise typer.BadParameter("give --text")

    def work(items: Iterator[Item]) -> Iterator[Result]:
        for result in comparisons(job.blip, items, text or None, frame=job.shared.frame):
            yield [{"text": said, **asdict(one)} for said, one in result] if isinstance(result, list) else result

    job.run(
        work,
        tasks=("nlvr",),
        options={"texts": text},
        table={"text": "text", "true": "label", "probability": "probability"},
        concerns=lambda row: not text or row.get("text") in text or "error" in row,
        asks=None if text else ("text", statements_of),
    )
