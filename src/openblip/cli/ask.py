"""`openblip ask`: answer questions about images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.cli import options as o
from openblip.cli.command import command, decoding_option, input_option
from openblip.cli.jobs import Job, lines_of
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@command(example='openblip ask cat.jpg -q "what animal is it?" -q "is it asleep?" --answers "yes|no"')
@o.images_argument
@input_option("-q", "--question", multiple=True, help="Question to ask; repeat the option for more questions.")
@input_option("--questions", type=o.PATH, metavar="FILE", help="File of questions to ask, one per line.")
@input_option("--answers", metavar="A|B|C", help="Answers to choose from, instead of free text.")
@o.input_options
@decoding_option("--num-beams", type=o.POSITIVE, show_default="3", help="Number of beams to search free answers with.")
@decoding_option("--max-new-tokens", type=o.POSITIVE, show_default="9", help="Most tokens of a free answer.")
@o.num_option
@o.output_options()
@o.model_options
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
) -> None:
    """Answer questions about each image. In Python: openblip.load(MODEL).ask(IMAGE, QUESTIONS)."""
    job = Job("ask", images, input, output, model)
    asked = lines_of("--question", questions, question)
    closed = [answer.strip() for answer in answers.split("|")] if answers is not None else None

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.answers import answers_of

        found = answers_of(
            job.blip,
            items,
            asked,
            frame=input.frame,
            answers=closed,
            n=num,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
        )
        for result in found:
            if not isinstance(result, list):
                yield result
                continue
            yield [
                {"rank": rank if num > 1 else None, "question": q, "text": one.text, "probability": one.probability}
                for q, best in zip(asked, result, strict=True)
                for rank, one in enumerate((best, *best.alternatives))
            ]

    job.run(
        work,
        tasks=("vqa",),
        options={
            "questions": asked,
            "answers": closed,
            "n": num,
            "num_beams": num_beams,
            "max_new_tokens": max_new_tokens,
        },
        table={"question": "question", "answer": "text", "probability": "probability"},
        concerns=lambda row: row.get("question") in asked or ("question" not in row and "error" in row),
    )
