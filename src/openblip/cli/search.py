"""`openblip search`: search an index of images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openblip.cli import options as o
from openblip.cli.command import FAILED, argument, command, input_option, output_option
from openblip.cli.console import print_json, print_table, printable_line
from openblip.cli.index import is_given
from openblip.cli.jobs import plural
from openblip.cli.options import ModelOptions

if TYPE_CHECKING:
    from openblip.search import Hit, Index, SearchResults

NUM = 20
RERANK = click.IntRange(min=0)


@command(
    example='openblip search photos.index "a dog on a beach" --rerank 50\n'
    'openblip search photos.index --image dog.jpg --minus "snow" --after 2024 --report hits.html'
)
@argument("index", metavar="DIR", help="Folder of an index, or the address of its database.")
@argument("text", metavar="[TEXT]", required=False, help="Text that the images should match.")
@input_option("--image", metavar="FILE", help="Image that the images should resemble; with a text, both count.")
@input_option(
    "--minus", metavar="TEXT", multiple=True, help="Text that the images should not match; repeat the option for more."
)
@input_option("--folder", metavar="DIR", show_default="all", help="Search only the images in or below this folder.")
@input_option("--after", metavar="DATE", show_default="all", help="Search only images of this date or later.")
@input_option("--before", metavar="DATE", show_default="all", help="Search only images from before this date.")
@input_option(
    "--caption",
    metavar="WORDS",
    show_default="all",
    help='Search only images whose caption contains these words; also "a phrase" and dog*.',
)
@output_option("-n", "--num", type=o.POSITIVE, default=NUM, help="Maximum number of images.")
@output_option(
    "--rerank",
    type=RERANK,
    default=0,
    help="Re-rank the N best images by the probability that the text matches (ITM).",
)
@output_option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="With --rerank, leave out images with a lower probability of a match.",
)
@output_option("--hide-duplicates", is_flag=True, help="Leave out near-duplicates of better results.")
@output_option("--duplicates", is_flag=True, help="List the groups of near-duplicates in the index instead.")
@output_option("--json", is_flag=True, help="Print one JSON object per image, and the summary last.")
@o.report_option
@o.model_options
def search(
    index: str,
    text: str | None,
    image: str | None,
    minus: tuple[str, ...],
    folder: str | None,
    after: str | None,
    before: str | None,
    caption: str | None,
    num: int,
    rerank: int,
    min_probability: float,
    hide_duplicates: bool,
    duplicates: bool,
    json: bool,
    report: Path | None,
    model: ModelOptions,
) -> None:
    """Find images of an index by text, image and filters. In Python: openblip.search.Index.search.

    Images are ranked by the cosine of their embedding with the query (ITC). With --rerank, images that do not match are
    left out, so that nothing may be found.
    """
    from openblip.search import Filter, Index

    if folder is not None and os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.abspath(folder)  # noqa: PTH100
    where = Filter(folder, after, before, caption)
    with Index.open(index) as opened:
        if duplicates:
            print_duplicates(opened, json=json)
            return
        blip = None
        if text is not None or image is not None or minus:
            if not is_given("model"):
                model = replace(model, model=opened.settings.model)
            blip = model.load()
        with warnings.catch_warnings(record=True) as notes:
            results = opened.search(
                blip,
                text,
                image=image,
                minus=minus,
                n=num,
                rerank=max(num, rerank) if rerank else 0,
                min_probability=min_probability,
                where=where,
                hide_duplicates=hide_duplicates,
            )
    for note in notes:
        click.echo(f"warning: {note.message}", err=True)
    if json:
        for hit in results:
            print_json(hit.to_dict())
        print_json({name: value for name, value in results.to_dict().items() if name != "hits"})
    elif results:
        print_hits(results)
    for failed in results.errors:
        click.echo(f"error: {failed.name}: {failed.error}", err=True)
    if not results and not json:
        click.echo(describe_nothing(results, text, min_probability), err=True)
    if report is not None:
        from openblip.search.page import write_page

        write_page(report, describe_query(text, image, minus, where), results)
        click.echo(f"{report}: {plural(len(results), 'image')}", err=True)
    if results.errors and not results:
        raise click.exceptions.Exit(FAILED)


def print_hits(results: SearchResults) -> None:
    """Print the hits as a table, without empty columns."""
    names = {hit.id: show_path(hit) for hit in results}
    columns: dict[str, Sequence[object]] = {
        "image": list(names.values()),
        "similarity": [hit.similarity for hit in results],
        "probability": [hit.probability for hit in results],
        "date": [hit.date[:10] for hit in results],
        "caption": [hit.caption for hit in results],
        "nearly equals": [names.get(hit.duplicate_of or "") for hit in results],
        "hidden": [sum(name not in names for name in hit.duplicates) or None for hit in results],
    }
    used = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    print_table(list(used), zip(*used.values(), strict=True))


def show_path(hit: Hit) -> str:
    """Return the path of a hit, relative to the working folder for images below it."""
    below = Path.cwd()
    return os.path.relpath(hit.path, below) if Path(hit.path).is_relative_to(below) else hit.path


def describe_nothing(results: SearchResults, text: str | None, min_probability: float) -> str:
    """Return why a search found nothing."""
    if not results.searched:
        return "nothing found: no image passes the filters"
    if results.best_rejected is None:
        return "nothing found"
    return (
        f"nothing found: no image matches {text!r} with a probability of {min_probability:g} or more; the best one has "
        f"{results.best_rejected:.3f} (see --min-probability)"
    )


def describe_query(text: str | None, image: str | None, minus: tuple[str, ...], where: object) -> list[str]:
    """Return the parts of a query in words."""
    parts = [text] if text else []
    parts += [f"like {Path(image).name}"] if image else []
    parts += [f"not {each}" for each in minus]
    names = ("folder", "after", "before", "caption")
    return parts + [f"{name}: {value}" for name in names if (value := getattr(where, name)) is not None]


def print_duplicates(index: Index, *, json: bool) -> None:
    """Print the groups of near-duplicates, the largest first."""
    groups = index.find_duplicates()
    if json:
        for group in groups:
            print_json({"images": [{"id": image.id, "name": image.name, "path": image.path} for image in group]})
        return
    for group in groups:
        click.echo("\n".join(printable_line(image.path) for image in group) + "\n")
    count = sum(len(group) for group in groups)
    click.echo(f"{plural(len(groups), 'group')} of near-duplicates, {plural(count, 'image')}", err=True)
