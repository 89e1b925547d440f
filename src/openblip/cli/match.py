"""``openblip match``: judge whether texts fit pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli.jobs import LISTS, Command, job_command, lines_of

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@job_command(LISTS)
def match(
    job: Command,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", "-t", metavar="TEXT", show_default=False, help="What to judge; give it again for more texts."
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", show_default=False, help="Texts, one in each line.")
    ] = None,
    sidecar: Annotated[
        str | None,
        typer.Option("--sidecar", metavar=".SUFFIX", show_default=False, help="Judge the texts beside the pictures."),
    ] = None,
) -> None:
    """Judge whether texts fit each picture. In Python: openblip.load(MODEL).match(FILES, TEXTS).

    Probability is that text and picture belong together (ITM); similarity is the cosine of their embeddings (ITC).

    \b
    Example:
      openblip match cat.jpg -t "a cat" -t "a rocket on its launch pad"
    """
    if sidecar is not None and (text or texts):
        raise typer.BadParameter("--sidecar judges the captions beside the pictures: give no texts with it")
    said = None if sidecar else lines_of("--text", texts, text)

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.matches import matches, matches_beside

        if said is not None:
            found = matches(job.blip, items, said, frame=job.shared.frame)
        else:
            found = matches_beside(job.blip, items, str(sidecar), frame=job.shared.frame)
        for result in found:
            yield [{"text": t, **asdict(one)} for t, one in result] if isinstance(result, list) else result

    job.run(
        work,
        tasks=("retrieval",),
        options={"texts": said, "sidecar": sidecar},
        table={"text": "text", "probability": "probability", "similarity": "similarity"},
        concerns=lambda row: said is None or row.get("text") in said or "error" in row,
    )
