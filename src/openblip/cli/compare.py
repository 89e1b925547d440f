"""`openblip compare`: judge whether statements about two images are true."""

from __future__ import annotations

import click

from openblip.cli import options as o
from openblip.cli.command import argument, command, input_option
from openblip.cli.jobs import ImageJob
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions


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

    Print the probability that each statement is true (NLVR2). A list names the images of a pair in the columns left
    and right, or as a list of two, and can have a statement in the column text. The model must support nlvr.
    """
    from openblip.data.sources.images import path_kind
    from openblip.jobs.matches import CompareAnnotator, statement_fields

    job = ImageJob(
        "compare",
        images,
        input,
        output,
        model,
        columns={"text": "text", "true": "label", "probability": "probability"},
        belongs=lambda row: not text or row.get("text") in text or "error" in row,
        key_fields=[] if text else ["text"],
    )
    kinds = [path_kind(path) for path in job.paths]
    if "image" in kinds and kinds != ["image", "image"]:
        raise click.UsageError(f"expected two images, or lists of pairs, got {', '.join(job.paths)}")
    if "image" in kinds and not text:
        raise click.UsageError("--text is required to compare two images")
    items = job.open_items(fields_of=None if text else statement_fields, pairs=True)
    with job.open_run(items, {model.model: ["nlvr"]}, {"texts": list(text)}) as run:
        annotator = CompareAnnotator(model.load(), input.frame, text) if run.has_work else None
        for status in run.run(annotator):
            job.show(status)
    job.finish(run)
