"""`openblip match`: score how well texts fit images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openblip.cli import options as o
from openblip.cli.command import command, input_option
from openblip.cli.jobs import ImageJob, read_texts
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions, RayOptions

if TYPE_CHECKING:
    from openblip.jobs.matches import MatchAnnotator, SidecarMatchAnnotator


@command(example='openblip match cat.jpg -t "a cat" -t "a rocket on its launch pad"')
@o.images_argument
@input_option("-t", "--text", multiple=True, help="Text to score; repeat the option for more texts.")
@input_option("--texts", type=o.PATH, metavar="FILE", help="File of texts to score, one per line.")
@input_option("--sidecar", metavar=".SUFFIX", help="Score the texts in the files next to the images, such as .txt.")
@o.input_options
@o.output_options()
@o.model_options
@o.ray_options
def match(
    images: tuple[str, ...],
    text: tuple[str, ...],
    texts: Path | None,
    sidecar: str | None,
    input: InputOptions,
    output: OutputOptions,
    model: ModelOptions,
    cluster: RayOptions,
) -> None:
    """Score how well texts fit each image. In Python: openblip.load(MODEL).match(IMAGES, TEXTS).

    Print the probability that image and text belong together (ITM) and the cosine of their embeddings (ITC).
    """
    if sidecar is not None and (text or texts):
        raise click.UsageError("--sidecar cannot be combined with --text or --texts")
    all_texts = None if sidecar else read_texts("--text", text, texts)
    job = ImageJob(
        "match",
        images,
        input,
        output,
        model,
        columns={"text": "text", "probability": "probability", "similarity": "similarity"},
        belongs=lambda row: all_texts is None or row.get("text") in all_texts or "error" in row,
        cluster=cluster,
    )
    make_annotator = partial(_make_annotator, model, input.frame, all_texts, sidecar)
    options = {"texts": all_texts, "sidecar": sidecar}
    if cluster.ray is not None:
        job.run_on_ray(cluster, make_annotator, {model.model: ["retrieval"]}, options)
        return
    items = job.open_items()
    with job.open_run(items, {model.model: ["retrieval"]}, options) as run:
        for status in run.run(make_annotator() if run.has_work else None):
            job.show(status)
    job.finish(run)


def _make_annotator(
    model: ModelOptions, frame: int, texts: Sequence[str] | None, sidecar: str | None
) -> MatchAnnotator | SidecarMatchAnnotator:
    """Load the model, and return the annotator of all texts, or of the texts next to each image."""
    from openblip.jobs.matches import MatchAnnotator, SidecarMatchAnnotator

    if texts is None:
        return SidecarMatchAnnotator(model.load(), frame, str(sidecar))
    return MatchAnnotator(model.load(), frame, texts)
