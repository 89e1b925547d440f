"""`openblip classify`: choose among labels that the model was not trained on."""

from __future__ import annotations

from typing import Literal

from openblip.cli import options as o
from openblip.cli.command import Choice, command, input_option
from openblip.cli.jobs import ImageJob
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions


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
    type=Choice(["itc", "itm"]),
    default="itc",
    help="Score to compare labels by: itc (embeddings, fast) or itm (image and label together).",
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

    The labels need no training. Each label is inserted into a text, and the label of the best matching text is chosen.
    """
    from openblip.jobs.matches import ClassifyAnnotator

    choices = [label.strip() for label in labels.split("|")]
    job = ImageJob(
        "classify",
        images,
        input,
        output,
        model,
        columns={"label": "label", "probability": "probability"},
        belongs=lambda row: "label" in row or "error" in row,
    )
    items = job.open_items()
    options = {"labels": choices, "n": num, "template": template, "by": by}
    with job.open_run(items, {model.model: ["retrieval"]}, options) as run:
        annotator = ClassifyAnnotator(model.load(), input.frame, choices, template, by, num) if run.has_work else None
        for status in run.run(annotator):
            job.show(status)
    job.finish(run)
