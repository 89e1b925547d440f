"""``openblip ask``: answer questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli import options as o
from openblip.cli.jobs import LISTS, Command, job_command, lines_of

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@job_command(LISTS)
def ask(
    job: Command,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            "-q",
            metavar="TEXT",
            show_default=False,
            help="What to ask; give it again for more.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", metavar="FILE", show_default=False, help="Questions, one in each line."),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option("--answers", metavar="A|B|C", show_default=False, help="Choose from these answers, split at |."),
    ] = None,
    num: o.Number = 1,
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the search for free answers.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of a free answer.")] = 9,
) -> None:
    """Answer questions about each picture. In Python: openblip.load(MODEL).ask(FILE, QUESTIONS).

    \b
    Example:
      openblip ask cat.jpg -q "what animal is it?" -q "is it asleep?" --answers "yes|no"
    """
    asked = lines_of("--question", questions, question)
    closed = [answer.strip() for answer in answers.split("|")] if answers is not None else None

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.answers import answers_of

        found = answers_of(
            job.blip,
            items,
            asked,
            frame=job.shared.frame,
            answers=closed,
            n=num,
            beams=beams,
            max_new_tokens=max_tokens,
        )
        for result in found:
            if not isinstance(result, list):
                yield result
                continue
            yield [
                {"rank": rank if num > 1 else None, "question": q, **asdict(one)}
                for q, ones in zip(asked, result, strict=True)
                for rank, one in enumerate(ones)
            ]

    job.run(
        work,
        tasks=("vqa",),
        options={"questions": asked, "answers": closed, "n": num, "beams": beams, "max_tokens": max_tokens},
        table={"question": "question", "answer": "text", "probability": "probability"},
        concerns=lambda row: row.get("question") in asked or ("question" not in row and "error" in row),
    )
