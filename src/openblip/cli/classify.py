"""`openblip classify`: choose among labels that the model was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import click

from openblip.cli import options as o
from openblip.cli.command import command, input_option
from openblip.cli.jobs import Job
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions
from openblip.errors import OpenBlipError

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@command(example='openblip classify photos/*.jpg -l "cat|dog|rocket" -n 3')
@o.images_argument
@input_option("-l", "--labels", metavar="A|B|C", required=True, help="Labels to choose from, separated by |.")
@input_option(
    "--template",
    default="a picture of {}",
    help="Text to compare with the image, with the label in place of {}.",
)
@input_option(
    "--by",
    type=click.Choice(["itc", "itm"]),
    default="itc",
    help="Compare embeddings (itc, fast), or read the label together with the image (itm).",
)
@o.input_options
@o.num_option
@o.output_options()
@o.model_options
def classify(
    images: tuple[str, ...],
    labels: str,
    template: str,
    by: Literal["itc", "itm"],
    input: InputOptions,
    num: int,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Choose a label for each image. In Python: openblip.load(MODEL).classify(IMAGES, LABELS).

    The model needs no training for the labels: each becomes a text, and the best matching text wins.
    """
    job = Job("classify", images, input, output, model)
    choices = [label.strip() for label in labels.split("|")]

    def work(items: Iterator[Item]) -> Iterator[Result]:
        pictures = (item.source(input.frame) for item in items)
        for found in job.blip.classify(pictures, choices, template=template, by=by, n=num, on_error="return"):
            if isinstance(found, OpenBlipError):
                yield found
                continue
            yield [
                {"rank": rank if num > 1 else None, "label": one.text, "probability": one.probability}
                for rank, one in enumerate(found.labels)
            ]

    job.run(
        work,
        tasks=("retrieval",),
        options={"labels": choices, "n": num, "template": template, "by": by},
        table={"label": "label", "probability": "probability"},
        concerns=lambda row: "label" in row or "error" in row,
    )
