"""`openblip index`: create or update an index of images."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from openblip.cli import options as o
from openblip.cli.command import FAILED, SOME_FAILED, Choice, argument, command, output_option
from openblip.cli.console import print_json, print_table
from openblip.cli.jobs import SMALL_MODEL, plural, read_paths
from openblip.cli.options import InputOptions, ModelOptions

if TYPE_CHECKING:
    from openblip.jobs.reporting import JobProgress
    from openblip.search import Index
    from openblip.search.listing import Listing
    from openblip.search.results import Outcome
    from openblip.search.settings import Dtype, IndexSettings, StatesMode
    from openblip.search.update import IndexUpdate

PROPERTY_BYTES = 800  # of a row of SQLite with its indexes and a caption
SUMMARY: dict[Outcome, str] = {
    "added": "added",
    "changed": "changed",
    "moved": "moved",
    "copied": "copied",
    "removed": "removed",
    "unchanged": "unchanged",
    "captioned": "captioned",
    "failed": "failed",
}


@command(example="openblip index photos --recursive --out photos.index\nopenblip index --out photos.index")
@argument(
    "images",
    nargs=-1,
    metavar="[IMAGE]...",
    help="Images, folders, globs and lists, or - to read paths from standard input. Default: all indexed folders.",
)
@o.input_options
@output_option(
    "--out",
    metavar="DIR",
    required=True,
    help="Folder of the index, or the address of a database, such as postgresql://user@host/photos.",
)
@output_option(
    "--states",
    type=Choice(("none", "cache", "stored")),
    default="none",
    help="Image states for --rerank: none computes them at each search, cache keeps recent ones, stored keeps all.",
)
@output_option(
    "--dtype",
    type=Choice(("fp32", "fp16")),
    show_default="fp32, or fp16 in a database",
    help="Type of the stored embeddings.",
)
@output_option(
    "--caption", is_flag=True, help="Caption the images that have no caption, for openblip search --caption."
)
@output_option("--prune", is_flag=True, help="Also remove images of indexed folders that no longer exist.")
@output_option("--compact", is_flag=True, help="Free the space of removed and changed images at the end.")
@output_option("--plan", is_flag=True, help="Print the number of images and the bytes per image, and write nothing.")
@output_option("--json", is_flag=True, help="Print the summary as JSON.")
@output_option("--quiet", is_flag=True, help="Print no progress and no summary, only errors.")
@output_option(
    "--progress",
    "progress_form",
    type=Choice(o.PROGRESS),
    metavar="FORM",
    default="auto",
    help="Form of the progress on standard error: auto, none, or json, one object per line.",
)
@o.model_options
def index(
    images: tuple[str, ...],
    input: InputOptions,
    out: str,
    states: StatesMode,
    dtype: Dtype | None,
    caption: bool,
    prune: bool,
    compact: bool,
    plan: bool,
    json: bool,
    quiet: bool,
    progress_form: str,
    model: ModelOptions,
) -> None:
    """Index images for openblip search. In Python: openblip.search.Index.

    Unchanged images are skipped, moved images are recognized by their content, and deleted images are removed. Without
    images, all indexed folders are updated. To resume an interrupted run, run the same command again.
    """
    if input.frame:
        raise click.UsageError("--frame does not apply to an index, which holds the first frame of animations")
    from openblip.data.skips import PathFilter, Skips
    from openblip.jobs.items import ListFormat
    from openblip.preprocess.limits import DecodeLimits, set_default_limits
    from openblip.search.index import Index, exists
    from openblip.search.listing import list_images

    limits = DecodeLimits() if input.max_pixels is None else DecodeLimits(None, input.max_pixels)
    set_default_limits(limits)
    with ExitStack() as stack:
        opened = stack.enter_context(Index.open(out)) if exists(out) else None
        if opened is not None:
            check_settings(opened.settings, states, dtype)
            model = model_of_index(opened.settings, model)
        skips = Skips()
        listing = list_images(
            list(read_paths(images)),
            {} if opened is None else opened.roots,
            recursive=input.recursive,
            prune=prune,
            lists=ListFormat(input.images_folder, input.mapping()),
            chosen=PathFilter(input.include, input.exclude),
            skips=skips,
            limit=input.limit,
        )
        if plan:
            print_plan(listing, opened, model, out, states, dtype)
            return
        if opened is None:
            check_some_file(listing)
            opened = stack.enter_context(Index.create(out, model.load(), dtype=dtype, states=states))
        run = opened.prepare_update(listing, model.load, caption=caption)
        reasons = run_update(run, quiet=quiet, form=progress_form)
        freed = opened.compact() if compact else 0
    counts = run.counts
    if json:
        summary: dict[str, Any] = {**{name: counts[name] for name in SUMMARY}, "encoded": run.encoded}
        summary |= {name: value for name, value in (("reasons", dict(reasons)), ("skipped", skips.totals())) if value}
        print_json(summary)
    elif not quiet:
        parts = [f"{counts[name]} {words}" for name, words in SUMMARY.items() if counts[name]]
        click.echo(", ".join(parts) or "nothing to do", err=True)
        if counts["failed"] > 1:
            click.echo(f"failed: {', '.join(f'{n} {kind}' for kind, n in reasons.most_common())}", err=True)
        if skips.counts:
            click.echo(f"skipped: {skips.describe()}", err=True)
        if compact:
            click.echo(f"freed: {format_bytes(freed)}", err=True)
        if model.model == "pocket" and run.encoded:
            click.echo(SMALL_MODEL, err=True)
    if counts["failed"]:
        raise click.exceptions.Exit(FAILED if counts["failed"] == counts.total() else SOME_FAILED)


def run_update(run: IndexUpdate, *, quiet: bool, form: str) -> Counter[str]:
    """Run an update with its progress, and return the number of failures by kind."""
    from openblip.jobs.reporting import failure_kind, report_progress

    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        progress: JobProgress | None = None
        if form == "json" or (form == "auto" and not quiet):
            progress = stack.enter_context(report_progress(len(run.listing.items), lines=True, form=form))
        try:
            for status in run.run():
                if progress is not None and status.outcome not in ("removed", "captioned"):
                    progress.advance(failed=status.outcome == "failed")
                if status.error is not None:
                    reasons[failure_kind(status.error)] += 1
                    line = describe_failure(status.name, status.error)
                    click.echo(line, err=True) if progress is None else progress.print(line)
        except KeyboardInterrupt as error:
            done = f"{run.counts.total()} of {len(run.listing.items)} images done"
            raise KeyboardInterrupt(f"{done}; run the same command again to resume") from error
    return reasons


def check_some_file(listing: Listing) -> None:
    """Print the errors of a listing and end the command if it names no file, before an index is created."""
    from openblip.jobs.items import Item
    from openblip.search.listing import explain_unusable

    failures: dict[str, str] = {}
    for item in listing.items:
        reason = explain_unusable(item)
        if isinstance(item, Item) and reason is None and not os.path.isfile(item.file or ""):  # noqa: PTH113
            reason = "no such file, or not a regular file"
        if reason is None:
            return
        failures[item.name] = reason
    for name, reason in failures.items():
        click.echo(describe_failure(name, reason), err=True)
    if failures:
        raise click.exceptions.Exit(FAILED)


def describe_failure(name: str, error: str) -> str:
    """Return the line of a failure, which names the image once.

    Args:
        name: Name of the image.
        error: The error, which may begin with the name.
    """
    for beginning in (f"cannot read {name}: ", f"{name}: ", f"{name} "):
        error = error.removeprefix(beginning)
    return " ".join(f"error: {name}: {error}".splitlines())


def check_settings(settings: IndexSettings, states: str, dtype: str | None) -> None:
    """Raise `click.UsageError` if options differ from the settings of an index.

    Args:
        settings: The settings of the index.
        states: The value of --states.
        dtype: The value of --dtype.
    """
    for name, value in (("states", states), ("dtype", dtype)):
        if is_given(name) and value != getattr(settings, name):
            raise click.UsageError(
                f"--{name} must be {getattr(settings, name)}, as the index was made, got {value}; make another index"
            )


def model_of_index(settings: IndexSettings, model: ModelOptions) -> ModelOptions:
    """Return the model options, with the settings of an index as defaults.

    Args:
        settings: The settings of the index.
        model: The options of the command.

    Raises:
        SearchError: The options name another model.
    """
    for name in ("model", "engine", "precision"):
        if not is_given(name) and (name == "model" or not model.fast):
            model = replace(model, **{name: getattr(settings, name)})
    if is_given("model"):
        from openblip.checkpoints.fingerprint import fingerprint

        weights = fingerprint(model.model, ["retrieval"], offline=model.offline or None)["retrieval"]
        settings.check_same_weights(weights, model.model)
    return model


def is_given(name: str) -> bool:
    """Return whether the user has set an option of the running command."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def print_plan(
    listing: Listing, index: Index | None, model: ModelOptions, out: str, states: StatesMode, dtype: Dtype | None
) -> None:
    """Print the number of images, and the bytes per image of everything that an index can store."""
    from openblip.jobs.items import Item
    from openblip.search.describe import describe_model
    from openblip.search.index import CACHE_BYTES, is_database

    if index is None:
        settings = describe_model(model.load(), dtype=dtype or ("fp16" if is_database(out) else "fp32"), states=states)
    else:
        settings = index.settings
    count = sum(isinstance(item, Item) for item in listing.items)
    listed = plural(count, "image") if index is None else f"{plural(count, 'image')} listed, {len(index)} in the index"
    click.echo(f"{listed}; model {settings.model}, {settings.engine}, {settings.precision}")
    rows: list[tuple[str, int, int, bool]] = []
    for dtype_name, size in (("fp32", 4), ("fp16", 2)):
        is_used = dtype_name == settings.dtype
        rows.append((f"embedding, --dtype {dtype_name}", size * settings.width, size * settings.width * count, is_used))
    rows.append(("properties and caption, about", PROPERTY_BYTES, PROPERTY_BYTES * count, True))
    for mode in ("none", "cache", "stored"):
        bytes_per_image = 0 if mode == "none" else settings.state_bytes
        total = min(bytes_per_image * count, CACHE_BYTES) if mode == "cache" else bytes_per_image * count
        rows.append((f"states, --states {mode}", bytes_per_image, total, mode == settings.states))
    used = sum(total for _, _, total, is_used in rows if is_used)
    lines = [[name, f"{per_image:,}", format_bytes(total), is_used] for name, per_image, total, is_used in rows]
    print_table(["", "bytes per image", f"{count:,} images", "used"], lines)
    click.echo(f"the index needs about {format_bytes(used)}")


def format_bytes(count: int) -> str:
    """Return a number of bytes with a unit."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
