"""`openblip compare`: judge whether statements about two images are true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from openblip.cli import options as o
from openblip.cli.command import argument, command, input_option
from openblip.cli.jobs import Job
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@command(example='openblip compare one.jpg two.jpg -t "both images show a dog" --model base')
@argument(
    "images",
    nargs=-1,
    metavar="LEFT RIGHT|LIST...",
    help="Two images, or .csv/.jsonl/.parquet lists and .tar shards of pairs, or - to read paths from standard input.",
)
@input_option(
    "-t",
    "--text",
    multiple=True,
    show_default="the statements of the list",
    help="Statement to judge; repeat the option for more statements.",
)
@o.input_options
@o.output_options()
@o.model_options
def compare(
    images: tuple[str, ...],
    text: tuple[str, ...],
    input: InputOptions,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Judge statements about two images. In Python: openblip.load(MODEL).compare(LEFT, RIGHT, STATEMENTS).

    Prints the probability that each statement is true (NLVR2). A list names the images of a pair in the columns left
    and right, or as a list of two, and may hold a statement in the column text. The model must serve nlvr.
    """
    job = Job("compare", images, input, output, model, pairs=True)
    from openblip.data.sources.images import path_kinds
    from openblip.jobs.matches import comparisons, statements_of

    if not text and "image" in path_kinds(job.paths):
        raise click.UsageError("--text is required to compare two images")

    def work(items: Iterator[Item]) -> Iterator[Result]:
        for result in comparisons(job.blip, items, text or None, frame=input.frame):
            yield [{"text": said, **one.to_dict()} for said, one in result] if isinstance(result, list) else result

    job.run(
        work,
        tasks=("nlvr",),
        options={"texts": list(text)},
        table={"text": "text", "true": "label", "probability": "probability"},
        concerns=lambda row: not text or row.get("text") in text or "error" in row,
        asks=None if text else ("text", statements_of),
    )
