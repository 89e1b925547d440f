"""``openblip compare``: judge whether statements about two pictures are true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results
from openblip.errors import ImageError


def compare(
    left: Annotated[str, typer.Argument(metavar="LEFT", show_default=False, help="A file or an https address.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", show_default=False, help="The picture beside it.")],
    text: Annotated[
        list[str], typer.Option("--text", "-t", metavar="TEXT", help="What to judge; give it again for more texts.")
    ],
    json: o.Json = False,
    model: o.Model = o.DEFAULT_MODEL,
    device: o.Device = "auto",
    engine: o.Engine = "torch",
    precision: o.Precision = "fp32",
    batch_size: o.BatchSize = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Judge statements about two pictures. In Python: openblip.load(MODEL).compare(LEFT, RIGHT, STATEMENTS).

    Probability is that the statement is true (NLVR2). The model must be one for comparing.

    \b
    Example:
      openblip compare one.jpg two.jpg -t "both pictures show a dog" --model base
    """
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)
    source = f"{left} | {right}"

    def lines() -> Iterator[Line]:
        try:
            found = blip.compare(left, right, text)
        except ImageError as error:
            yield Line(source, error=error)
            return
        for said, one in zip(text, found, strict=True):
            record = {"left": left, "right": right, "text": said, **asdict(one)}
            yield Line(source, [said, str(one.label).lower(), f"{one.probability:.3f}"], record)

    print_results(["text", "true", "probability"], lines(), 1, as_json=json)
