"""``openblip classify``: choose among labels that the model was never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results

if TYPE_CHECKING:
    from typing import Literal


def classify(
    images: o.Images,
    labels: Annotated[
        str, typer.Option("--labels", "-l", metavar="A|B|C", help="The labels to choose from, separated by |.")
    ],
    num: o.Number = 1,
    template: Annotated[
        str, typer.Option("--template", metavar="TEXT", help="What makes a text of a label.")
    ] = "a picture of {}",
    by: Annotated[
        str, typer.Option("--by", metavar="HEAD", help="itc compares embeddings; itm reads text and picture together.")
    ] = "itc",
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
    """Choose the label of each picture. In Python: openblip.load(MODEL).classify(FILES, LABELS).

    Nothing is trained: each label becomes a text, and the one that fits best wins.

    \b
    Example:
      openblip classify photos/*.jpg -l "cat|dog|rocket" -n 3
    """
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)
    choices = [label.strip() for label in labels.split("|")]
    found = blip.classify(iter(images), choices, template=template, by=cast("Literal['itc', 'itm']", by), n=num)

    def lines() -> Iterator[Line]:
        for image, result in zip(images, found, strict=True):
            if isinstance(result, Exception):
                yield Line(image, error=result)
                continue
            for one in result if num > 1 else [result]:
                record = asdict(one)
                yield Line(image, [one.text, f"{one.probability:.3f}"], {"label": record.pop("text"), **record})

    print_results(["label", "probability"], lines(), len(images), as_json=json)
