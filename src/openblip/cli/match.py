"""`openblip match`: score how well texts fit images."""

from __future__ import annotations

from pathlib import Path

import click

from openblip.cli import options as o
from openblip.cli.command import command, input_option
from openblip.cli.jobs import ImageJob, read_texts
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions


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

    Print the probability that image and text belong together (ITM) and the cosine of their embeddings (ITC).
    """
    if sidecar is not None and (text or texts):
        raise click.UsageError("--sidecar cannot be combined with --text or --texts")
    from openblip.jobs.matches import MatchAnnotator, SidecarMatchAnnotator

    all_texts = None if sidecar else read_texts("--text", text, texts)
    job = ImageJob(
        "match",
        images,
        input,
        output,
        model,
        columns={"text": "text", "probability": "probability", "similarity": "similarity"},
        belongs=lambda row: all_texts is None or row.get("text") in all_texts or "error" in row,
    )
    items = job.open_items()
    with job.open_run(items, {model.model: ["retrieval"]}, {"texts": all_texts, "sidecar": sidecar}) as run:
        annotator: MatchAnnotator | SidecarMatchAnnotator | None = None
        if run.has_work and all_texts is not None:
            annotator = MatchAnnotator(model.load(), input.frame, all_texts)
        elif run.has_work:
            annotator = SidecarMatchAnnotator(model.load(), input.frame, str(sidecar))
        for status in run.run(annotator):
            job.show(status)
    job.finish(run)
