"""`openblip capfilt`: caption and filter web images, apply another rule, and report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from openblip import defaults
from openblip.cli import options as o
from openblip.cli.command import (
    DECODING,
    FAILED,
    INPUT,
    MODEL,
    OUTPUT,
    SOME_FAILED,
    argument,
    group,
    option,
)
from openblip.cli.console import print_json
from openblip.io import progress

if TYPE_CHECKING:
    from openblip.capfilt.rules import Keep
    from openblip.defaults import EngineName
    from openblip.io.fetch import FetchOptions
    from openblip.jobs.executors import Executor

NETWORK = "Fetching"
KEEP = click.Choice(["itm", "itc", "both"])


@group("capfilt")
def app() -> None:
    """Caption web images and keep the texts that match (CapFilt).

    The scores of all texts are stored, so that `rethreshold` applies another rule without a model.
    """


keep_option = option(
    "--keep", type=KEEP, default="itm", panel=OUTPUT, help="Scores that decide: itm (the paper's rule), itc or both."
)
itm_option = option(
    "--itm-threshold", type=float, default=0.5, panel=OUTPUT, help="Minimum ITM probability of a kept text."
)
itc_option = option(
    "--itc-threshold",
    type=float,
    show_default="none; required with itc and both",
    panel=OUTPUT,
    help="Minimum ITC cosine of a kept text; its scale depends on the model.",
)
folder_argument = argument("folder", type=o.PATH, metavar="DIR", help="Output folder of `openblip capfilt run`.")
json_option = option("--json", is_flag=True, panel=OUTPUT, help="Print the counts as JSON.")


@app.command(
    "run",
    example="openblip capfilt run web --out filtered --captioner runs/caption/model --filter runs/retrieval/model",
)
@argument(
    "source",
    nargs=-1,
    required=True,
    metavar="SOURCE...",
    help="WebDataset tars, .parquet, .jsonl or .csv files with paths or addresses, or folders of images with texts.",
)
@option("--out", type=o.PATH, required=True, metavar="DIR", panel=OUTPUT, help="Output folder; the run resumes there.")
@option("--captioner", metavar="MODEL", required=True, panel=MODEL, help="Model that writes captions.")
@option("--filter", "matcher", metavar="MODEL", required=True, panel=MODEL, help="Model that scores texts (retrieval).")
@option(
    "--images",
    metavar="DIR",
    show_default="the folder of the list",
    panel=INPUT,
    help="Folder for relative image paths.",
)
@option(
    "--column",
    "columns",
    metavar="FIELD=NAME",
    multiple=True,
    panel=INPUT,
    help="Column of a field, such as caption=alt_text; repeat the option for more.",
)
@option("--shard-rows", type=o.POSITIVE, default=1000, panel=INPUT, help="Rows per shard of lists and folders.")
@option("-n", "--num", type=o.POSITIVE, default=1, panel=DECODING, help="Synthetic captions per image.")
@option("--top-p", type=float, default=0.9, panel=DECODING, help="Sample from the tokens with this total probability.")
@option(
    "--num-beams",
    type=o.POSITIVE,
    show_default="none: sample",
    panel=DECODING,
    help="Use beam search instead of sampling.",
)
@option("--min-new-tokens", type=o.NATURAL, default=6, panel=DECODING, help="Minimum number of tokens to generate.")
@option("--max-new-tokens", type=o.POSITIVE, default=26, panel=DECODING, help="Maximum number of tokens to generate.")
@option("--repetition-penalty", type=float, default=1.1, panel=DECODING, help="Penalize repeated words if above 1.")
@option("--prompt", show_default="the checkpoint's prompt", panel=DECODING, help="Text to start every caption with.")
@option(
    "--seed",
    type=int,
    default=0,
    panel=DECODING,
    help="Seed; the samples of an image depend on it and on the key of the image.",
)
@keep_option
@itm_option
@itc_option
@option(
    "--to",
    type=click.Choice(["parquet", "webdataset"]),
    default="parquet",
    panel=OUTPUT,
    help="Formats to write: parquet, or Parquet and WebDataset tars with all images.",
)
@option("--retry", type=click.Choice(["failed"]), panel=OUTPUT, help="Compute only the failed rows again.")
@json_option
@option(
    "--ray", metavar="ADDRESS", show_default="this machine", panel=MODEL, help="Run on Ray: auto, local or an address."
)
@option(
    "--workers",
    type=o.POSITIVE,
    show_default="1; with --ray one per GPU or core",
    panel=MODEL,
    help="Processes, or Ray actors, each with both models.",
)
@o.device_option
@option(
    "--engine",
    metavar="ENGINE",
    default=defaults.ENGINE,
    panel=MODEL,
    help="Engine to run the models with: auto, torch, compiled or openvino.",
)
@o.precision_option
@option(
    "--batch-size", type=o.BatchSize(), metavar="auto|N", show_default="auto", panel=MODEL, help="Images per batch."
)
@option("--num-workers", type=o.NATURAL, show_default="auto", panel=MODEL, help="Threads that open or fetch images.")
@o.threads_option
@o.offline_option
@option("--allow-fetch", is_flag=True, panel=NETWORK, help="Fetch images from the web.")
@option(
    "--allow-host",
    "allow_hosts",
    metavar="HOST[:PORT]",
    multiple=True,
    panel=NETWORK,
    help="Host that may have a private IP address; repeat the option for more.",
)
@option(
    "--max-bytes", type=o.POSITIVE, default=32 * 2**20, panel=NETWORK, help="Maximum size of a fetched file, in bytes."
)
@option(
    "--max-pixels",
    type=o.POSITIVE,
    default=50_000_000,
    panel=NETWORK,
    help="Maximum number of pixels of a fetched image.",
)
@option("--fetch-timeout", type=float, default=30.0, panel=NETWORK, help="Timeout of a request, in seconds.")
@option(
    "--fetch-interval", type=float, default=0.5, panel=NETWORK, help="Pause between requests to one host, in seconds."
)
@option("--user-agent", show_default="openblip/VERSION", panel=NETWORK, help="Name to send to servers.")
def run(
    source: tuple[str, ...],
    out: Path,
    captioner: str,
    matcher: str,
    images: str | None,
    columns: tuple[str, ...],
    shard_rows: int,
    num: int,
    top_p: float,
    num_beams: int | None,
    min_new_tokens: int,
    max_new_tokens: int,
    repetition_penalty: float,
    prompt: str | None,
    seed: int,
    keep: Keep,
    itm_threshold: float,
    itc_threshold: float | None,
    to: Any,
    retry: str | None,
    json: bool,
    ray: str | None,
    workers: int | None,
    device: str,
    engine: str,
    precision: str,
    batch_size: int | None,
    num_workers: int | None,
    threads: int | None,
    offline: bool,
    allow_fetch: bool,
    allow_hosts: tuple[str, ...],
    max_bytes: int,
    max_pixels: int,
    fetch_timeout: float,
    fetch_interval: float,
    user_agent: str | None,
) -> None:
    """Caption and filter the images of SOURCE. To resume a stopped run, run the same command again.

    Every image gets synthetic captions; the filter scores them and the texts of the source. Train on DIR/parquet or
    DIR/webdataset.
    """
    o.prepare(threads=threads, offline=offline)
    from openblip.capfilt.rules import Rule
    from openblip.capfilt.run import CapFiltJob, ModelOptions
    from openblip.capfilt.run import run as run_job
    from openblip.capfilt.scoring import Sampling
    from openblip.data.skips import Skips
    from openblip.jobs.executors import run_in_process, run_in_processes

    rule = Rule(keep, itm_threshold, itc_threshold)
    if precision == "auto":  # all workers and later runs use one choice, whatever their machines
        from openblip.engine.choice import choose
        from openblip.engine.device import resolve_device

        choice = choose(cast("EngineName", engine), "auto", resolve_device(device, cpu_only=engine == "openvino").type)
        click.echo(str(choice), err=True)
        engine, precision = choice.engine, choice.precision
    models = ModelOptions(
        captioner, matcher, device, engine, precision, batch_size, num_workers, threads, offline or None
    )
    sampling = Sampling(
        num=num,
        top_p=top_p,
        min_new_tokens=min_new_tokens,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams or 0,
        prompt=prompt,
        seed=seed,
    )
    fetch = None
    if allow_fetch:
        fetch = _fetch_options(
            max_bytes, max_pixels, fetch_timeout, fetch_interval * (workers or 1), user_agent, allow_hosts
        )
    elif allow_hosts:
        raise click.UsageError("--allow-host needs --allow-fetch")
    job = CapFiltJob(str(out), models, sampling, rule, to, _parse_columns(columns), fetch, retry is not None)
    execute: Executor = run_in_process if workers is None or workers == 1 else run_in_processes(workers)
    if ray is not None:
        from openblip.jobs.ray import run_on_ray

        if allow_fetch and workers is None:
            raise click.UsageError("--allow-fetch with --ray needs --workers, which share the rate of requests")
        execute = run_on_ray(ray, workers=workers, cpus=threads or 1)
    skips = Skips()
    with progress.bar("shards") as bar:
        counts = run_job(
            source,
            job,
            images=images,
            shard_rows=shard_rows,
            execute=execute,
            notify=lambda done, total: bar.update(done, total),
            skips=skips,
        )
    if skips.counts:
        click.echo(f"skipped: {skips.describe()}", err=True)
    _print_counts(counts, json)
    if counts["failed"] or counts["rejected"]:
        raise click.exceptions.Exit(SOME_FAILED if counts["images"] else FAILED)


@app.command(
    "rethreshold", example="openblip capfilt rethreshold filtered --keep both --itm-threshold 0.7 --itc-threshold 0.3"
)
@folder_argument
@keep_option
@itm_option
@itc_option
@json_option
def rethreshold(folder: Path, keep: Keep, itm_threshold: float, itc_threshold: float | None, json: bool) -> None:
    """Apply another rule to the stored scores, without a model and without copying images."""
    from openblip.capfilt.folder import CapFiltFolder
    from openblip.capfilt.rethreshold import rethreshold as apply
    from openblip.capfilt.rules import Rule

    counts = apply(CapFiltFolder(folder), Rule(keep, itm_threshold, itc_threshold))
    _print_counts(counts, json)


@app.command("report", example="openblip capfilt report filtered --images 48")
@folder_argument
@option(
    "--out", type=o.HtmlFile(), metavar="FILE.html", show_default="DIR/report.html", panel=OUTPUT, help="File to write."
)
@option("--images", type=o.NATURAL, default=24, panel=OUTPUT, help="Images on the contact sheet.")
def report(folder: Path, out: Path | None, images: int) -> None:
    """Write an HTML page with counts, histograms, diversity and a contact sheet of kept and dropped texts."""
    from openblip.capfilt.folder import CapFiltFolder
    from openblip.capfilt.report import write_report

    path = out or folder / "report.html"
    write_report(CapFiltFolder(folder), path, images=images)
    click.echo(path)


def _print_counts(counts: Counter[str], json: bool) -> None:
    from openblip.capfilt.summary import describe

    if json:
        print_json(dict(counts))
        return
    for line in describe(counts):
        click.echo(line, err=True)


def _parse_columns(assignments: tuple[str, ...]) -> dict[str, str]:
    columns = {}
    for assignment in assignments:
        name, separator, column = assignment.partition("=")
        if not separator or not column:
            raise click.UsageError(f"--column must look like caption=alt_text, got {assignment!r}")
        columns[name] = column
    return columns


def _fetch_options(
    max_bytes: int,
    max_pixels: int,
    max_seconds: float,
    interval: float,
    user_agent: str | None,
    allow_hosts: tuple[str, ...],
) -> FetchOptions:
    from openblip.io.fetch import USER_AGENT, FetchOptions

    return FetchOptions(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_seconds=max_seconds,
        interval=interval,
        user_agent=user_agent or USER_AGENT,
        allow_hosts=allow_hosts,
    )
