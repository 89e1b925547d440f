"""`openblip ask`: answer questions about images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.cli import options as o
from openblip.cli.command import command, decoding_option, input_option
from openblip.cli.jobs import ImageJob, read_texts
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions, RayOptions

if TYPE_CHECKING:
    from openblip.jobs.answers import AnswerAnnotator


@command(example='openblip ask cat.jpg -q "what animal is it?" -q "is it asleep?" --answers "yes|no"')
@o.images_argument
@input_option("-q", "--question", multiple=True, help="Question to ask; repeat the option for more questions.")
@input_option("--questions", type=o.PATH, metavar="FILE", help="File of questions to ask, one per line.")
@input_option("--answers", metavar="A|B|C", help="Answers to choose from, instead of free text.")
@o.input_options
@decoding_option("--num-beams", type=o.POSITIVE, show_default="3", help="Number of beams for free answers.")
@decoding_option("--max-new-tokens", type=o.POSITIVE, show_default="9", help="Maximum tokens of a free answer.")
@o.num_option
@o.output_options()
@o.model_options
@o.ray_options
def ask(
    images: tuple[str, ...],
    question: tuple[str, ...],
    questions: Path | None,
    answers: str | None,
    input: InputOptions,
    num_beams: int | None,
    max_new_tokens: int | None,
    num: int,
    output: OutputOptions,
    model: ModelOptions,
    cluster: RayOptions,
) -> None:
    """Answer questions about each image. In Python: openblip.load(MODEL).ask(IMAGE, QUESTIONS)."""
    all_questions = read_texts("--question", question, questions)
    choices = [answer.strip() for answer in answers.split("|")] if answers is not None else None
    job = ImageJob(
        "ask",
        images,
        input,
        output,
        model,
        columns={"question": "question", "answer": "text", "probability": "probability", "score": "score"},
        belongs=lambda row: row.get("question") in all_questions or ("question" not in row and "error" in row),
        cluster=cluster,
    )
    options = {"answers": choices, "n": num, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
    make_annotator = partial(_make_annotator, model, input.frame, all_questions, options)
    if cluster.ray is not None:
        job.run_on_ray(cluster, make_annotator, {model.model: ["vqa"]}, {"questions": all_questions, **options})
        return
    items = job.open_items()
    with job.open_run(items, {model.model: ["vqa"]}, {"questions": all_questions, **options}) as run:
        for status in run.run(make_annotator() if run.has_work else None):
            job.show(status)
    job.finish(run)


def _make_annotator(
    model: ModelOptions, frame: int, questions: Sequence[str], options: Mapping[str, Any]
) -> AnswerAnnotator:
    """Load the model, and return its annotator."""
    from openblip.jobs.answers import AnswerAnnotator

    return AnswerAnnotator(model.load(), frame, questions, options)
