"""`openblip match`: score how well texts fit images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openblip.cli import options as o
from openblip.cli.command import command, input_option
from openblip.cli.jobs import Job, lines_of
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@command(example='openblip match cat.jpg -t "a cat" -t "a rocket on its launch pad"')
@o.images_argument
@input_option("-t", "--text", multiple=True, help="Text to score; repeat the option for more texts.")
@input_option("--texts", type=o.PATH, metavar="FILE", help="File of texts to score, one per line.")
@input_option("--sidecar", metavar=".SUFFIX", help="Score the texts in the files next to the images, such as .txt.")
@o.input_options
@o.output_options()
@o.model_options
def match(
    images: tuple[str, ...],
    text: tuple[str, ...],
    texts: Path | None,
    sidecar: str | None,
    input: InputOptions,
    output: OutputOptions,
    model: ModelOptions,
) -> None:
    """Score how well texts fit each image. In Python: openblip.load(MODEL).match(IMAGES, TEXTS).

    Prints the probability that image and text belong together (ITM) and the cosine of their embeddings (ITC).
    """
    job = Job("match", images, input, output, model)
    if sidecar is not None and (text or texts):
        raise click.UsageError("--sidecar reads the texts from files: remove --text and --texts")
    said = None if sidecar else lines_of("--text", texts, text)

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.matches import matches, matches_beside

        if said is not None:
            found = matches(job.blip, items, said, frame=input.frame)
        else:
            found = matches_beside(job.blip, items, str(sidecar), frame=input.frame)
        for result in found:
            yield [{"text": t, **one.to_dict()} for t, one in result] if isinstance(result, list) else result

    job.run(
        work,
        tasks=("retrieval",),
        options={"texts": said, "sidecar": sidecar},
        table={"text": "text", "probability": "probability", "similarity": "similarity"},
        concerns=lambda row: said is None or row.get("text") in said or "error" in row,
    )
