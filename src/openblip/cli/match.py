"""``openblip match``: judge whether texts fit pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results


def match(
    images: o.Images,
    text: Annotated[
        list[str], typer.Option("--text", "-t", metavar="TEXT", help="What to judge; give it again for more texts.")
    ],
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
    """Judge whether texts fit each picture. In Python: openblip.load(MODEL).match(FILES, TEXTS).

    Probability is that text and picture belong together (ITM); similarity is the cosine of their embeddings (ITC).

    \b
    Example:
      openblip match cat.jpg -t "a cat" -t "a rocket on its launch pad"
    """
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)

    def lines() -> Iterator[Line]:
        for image, result in zip(images, blip.match(iter(images), text), strict=True):
            if isinstance(result, Exception):
                yield Line(image, error=result)
                continue
            for said, one in zip(text, result, strict=True):
                cells = [said, f"{one.probability:.3f}", f"{one.similarity:.3f}"]
                yield Line(image, cells, {"text": said, **asdict(one)})

    print_results(["text", "probability", "similarity"], lines(), len(images), as_json=json)
