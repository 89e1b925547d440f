"""``openblip classify``: choose among labels that the model was never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, cast

import typer

from openblip.cli import options as o
from openblip.cli.jobs import LISTS, Command, choice, job_command
from openblip.errors import OpenBlipError

if TYPE_CHECKING:
    from typing import Literal

    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@job_command(LISTS)
def classify(
    job: Command,
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
) -> None:
    """Choose the label of each picture. In Python: openblip.load(MODEL).classify(FILES, LABELS).

    Nothing is trained: each label becomes a text, and the one that fits best wins.

    \b
    Example:
      openblip classify photos/*.jpg -l "cat|dog|rocket" -n 3
    """
    head = cast("Literal['itc', 'itm']", choice("--by", by, ("itc", "itm")))
    choices = [label.strip() for label in labels.split("|")]

    def work(items: Iterator[Item]) -> Iterator[Result]:
        pictures = (item.source(job.shared.frame) for item in items)
        for found in job.blip.classify(pictures, choices, template=template, by=head, n=num):
            if isinstance(found, OpenBlipError):
                yield found
                continue
            yield [
                {"rank": rank if num > 1 else None, "label": one.text, "probability": one.probability}
                for rank, one in enumerate(found if num > 1 else [found])
            ]

    job.run(
        work,
        tasks=("retrieval",),
        options={"labels": choices, "n": num, "template": template, "by": by},
        table={"label": "label", "probability": "probability"},
        concerns=lambda row: "label" in row or "error" in row,
    )
