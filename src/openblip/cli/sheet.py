"""`openblip sheet`: review and edit the captions of a folder."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from openblip.cli import options as o
from openblip.cli.caption import FORMATS
from openblip.cli.command import Choice, command, input_option, output_option
from openblip.cli.console import finish
from openblip.cli.jobs import limit_items, plural, read_paths
from openblip.cli.options import InputOptions


@command(example="openblip sheet photos\nopenblip sheet photos --from jsonl --captions captions.jsonl")
@o.images_argument
@o.input_options
@input_option(
    "--from",
    "source",
    type=Choice(FORMATS),
    metavar="FORMAT",
    default="sidecar",
    help=f"Format that the captions are stored in: {', '.join(FORMATS)}.",
)
@input_option(
    "--captions",
    metavar="PATH",
    show_default="next to the images",
    help="File of the captions, or folder of sidecar files; the --out of openblip caption.",
)
@input_option("--ext", metavar=".SUFFIX", default=".txt", help="Suffix of sidecar files.")
@output_option(
    "--report", type=o.HtmlFile(), metavar="FILE.html", default=Path("sheet.html"), help="HTML page to write."
)
@output_option("--no-open", is_flag=True, help="Do not open the page in the browser.")
def sheet(
    images: tuple[str, ...],
    input: InputOptions,
    source: str,
    captions: str | None,
    ext: str,
    report: Path,
    no_open: bool,
) -> None:
    """Review and edit the captions of images in a page.

    No model is needed. The page exports edits, and `openblip caption --apply` writes them back.
    """
    if not images:
        raise click.UsageError("expected at least one image or folder, got none")
    from openblip.data.skips import PathFilter, Skips
    from openblip.jobs.items import ListFormat, common_folder, open_items
    from openblip.jobs.sheet import read_statuses, write_sheet
    from openblip.jobs.sinks import SinkOptions, open_sink

    paths = list(read_paths(images)) if "-" in images else list(images)
    sink = open_sink(source, SinkOptions(captions, common_folder(paths), ext=ext))
    skips = Skips()
    items = open_items(
        paths,
        recursive=input.recursive,
        base=sink.base,
        lists=ListFormat(input.images_folder, input.mapping()),
        chosen=PathFilter(input.include, input.exclude),
        skips=skips,
    )
    if input.limit is not None:
        items = limit_items(items, input.limit)
    statuses = list(read_statuses(items, sink))
    pages = write_sheet(report, statuses, sink)
    failed = sum(status.error is not None for status in statuses)
    missing = sum(status.error is None and not status.text and not status.records for status in statuses)
    click.echo(
        f"{report}: {plural(len(statuses), 'image')} on {plural(pages, 'page')}"
        + (f", {missing} without a caption" if missing else ""),
        err=True,
    )
    if skips.counts:
        click.echo(f"skipped: {skips.describe()}", err=True)
    if not no_open:
        webbrowser.open(report.resolve().as_uri())
    for status in statuses:
        if status.error is not None:
            click.echo(f"error: {status.item.name}: {status.error}", err=True)
    finish(failed, len(statuses))
