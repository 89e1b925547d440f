"""``openblip ask``: answer questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results
from openblip.errors import ImageError


def ask(
    images: o.Images,
    question: Annotated[
        list[str],
        typer.Option("--question", "-q", metavar="TEXT", help="What to ask; give it again for more questions."),
    ],
    answers: Annotated[
        str | None, typer.Option("--answers", metavar="A|B|C", help="Choose from these answers, separated by |.")
    ] = None,
    num: o.Number = 1,
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the search for free answers.")] = 3,
    json: o.Json = False,
    model: o.Model = o.DEFAULT_MODEL,
    device: o.Device = "auto",
    engine: o.Engine = "auto",
    precision: o.Precision = "fp32",
    batch_size: o.BatchSize = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Answer questions about each picture. In Python: openblip.load(MODEL).ask(FILE, QUESTIONS).

    \b
    Example:
      openblip ask cat.jpg -q "what animal is it?" -q "is it asleep?" --answers "yes|no"
    """
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)
    closed = [answer.strip() for answer in answers.split("|")] if answers is not None else None

    def lines() -> Iterator[Line]:
        for image in images:
            try:
                found = blip.ask(image, question, answers=closed, n=num, beams=beams)
            except ImageError as error:
                yield Line(image, error=error)
                continue
            for asked, result in zip(question, found, strict=True):
                for one in result if num > 1 else [result]:
                    record = {"question": asked, **asdict(one)}
                    yield Line(image, [asked, one.text, f"{one.probability:.3f}"], record)

    print_results(["question", "answer", "probability"], lines(), len(images), as_json=json)
