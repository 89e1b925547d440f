"""The options that commands share, one decorator per panel, so that an option means the same thing everywhere.

A command stacks the decorators it needs and receives each panel as a dataclass:

    @command(example="openblip caption photo.jpg")
    @input_options
    @model_options
    def caption(input: InputOptions, model: ModelOptions) -> None: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openblip import defaults
from openblip.cli.command import Choice, Function, argument, input_option, model_option, option_group, output_option

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.defaults import EngineName, PrecisionOption
    from openblip.engine.choice import Choice as EngineChoice
    from openblip.jobs.sinks import Existing

DEFAULT_MODEL = "pocket"
LISTS = ("jsonl", "csv", "parquet")
PROGRESS = ("auto", "json", "none")
EXISTING = ("skip", "overwrite", "append", "prepend")


class BatchSize(click.ParamType):  # type: ignore[type-arg]  # generic in recent releases of click only
    """A positive integer, or "auto" (`None`)."""

    name = "batch size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number, or `None` for auto."""
        if value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"must be 'auto' or a positive integer, got {value!r}", param, ctx)
        return int(value)


class HtmlFile(click.Path):
    """The path of an HTML file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or fail if it does not end in .html or .htm."""
        path = Path(value)
        if path.suffix.lower() not in (".html", ".htm"):
            self.fail(f"must end in .html, got {path}", param, ctx)
        return path


class TableFile(click.Path):
    """The path of a CSV or LaTeX file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or fail if it does not end in .csv or .tex."""
        path = Path(value)
        if path.suffix.lower() not in (".csv", ".tex"):
            self.fail(f"must end in .csv or .tex, got {path}", param, ctx)
        return path


POSITIVE = click.IntRange(min=1)
NATURAL = click.IntRange(min=0)
PATH = click.Path(path_type=Path)

images_argument = argument(
    "images",
    nargs=-1,
    metavar="[IMAGE]...",
    help="Images, folders, globs, .tar shards, .csv/.jsonl/.parquet lists, https addresses, or - to read paths from "
    "standard input.",
)
num_option = output_option("-n", "--num", type=POSITIVE, default=1, help="Results per image.")
json_option = output_option("--json", is_flag=True, help="Print one JSON object per line.")
draw_option = output_option(
    "--draw", type=PATH, metavar="PATH", help="Draw the results into a .png file, or into a folder for several images."
)
report_option = output_option(
    "--report",
    type=HtmlFile(),
    metavar="FILE.html",
    help="Write an HTML page that shows every image with its results.",
)
resume_option = output_option(
    "--resume", is_flag=True, help="Continue an earlier run with the same output. This is the default."
)
device_option = model_option(
    "--device", metavar="DEVICE", default=defaults.DEVICE, help="Device to compute on: auto, cpu, cuda, cuda:1 or mps."
)
precision_option = model_option(
    "--precision",
    metavar="PRECISION",
    default=defaults.PRECISION,
    help="Precision of the arithmetic: fp32, bf16, fp16, int8, or auto for the fastest on this machine.",
)
training_precision_option = model_option(
    "--precision",
    metavar="PRECISION",
    default=defaults.PRECISION,
    help="Precision of the arithmetic: fp32, bf16 or fp16.",
)
threads_option = model_option("--threads", type=POSITIVE, show_default="all cores", help="CPU threads to compute with.")
offline_option = model_option("--offline", is_flag=True, help="Use only files on this machine.")


@dataclass(frozen=True)
class InputOptions:
    """Options for finding and reading images."""

    recursive: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    images_folder: str | None
    columns: tuple[str, ...]
    frame: int
    limit: int | None
    max_pixels: int | None

    def mapping(self) -> dict[str, str]:
        """Return the column of each field that --columns names.

        Raises:
            click.UsageError: A part is not FIELD=NAME, or names a field that lists do not have.
        """
        from openblip.data.schema import check_columns
        from openblip.errors import InputError

        pairs = [part.partition("=") for option in self.columns for part in option.split(",") if part.strip()]
        if any(not (field.strip() and separator and name.strip()) for field, separator, name in pairs):
            raise click.UsageError(f"--columns must be FIELD=NAME,..., got {','.join(self.columns)!r}")
        mapping = {field.strip(): name.strip() for field, _, name in pairs}
        try:
            check_columns(mapping)
        except InputError as error:
            raise click.UsageError(f"--columns: {error}") from error
        return mapping


input_options = option_group(
    "input",
    InputOptions,
    [
        input_option("-r", "--recursive", is_flag=True, help="Also search subfolders."),
        input_option(
            "--include",
            metavar="GLOB",
            multiple=True,
            show_default="files with an image suffix",
            help="Read only files whose name or path matches; repeat the option for more patterns.",
        ),
        input_option(
            "--exclude",
            metavar="GLOB",
            multiple=True,
            help="Skip files and folders whose name or path matches; repeat the option for more patterns.",
        ),
        input_option(
            "--images",
            "images_folder",
            metavar="DIR",
            show_default="the folder of the list",
            help="Folder for the relative image paths of a list, and for absolute paths of another machine.",
        ),
        input_option(
            "--columns",
            metavar="FIELD=NAME,...",
            multiple=True,
            show_default="the usual names",
            help="Columns of a list, such as image=photo,caption=title; numbers for a list without a header.",
        ),
        input_option("--frame", type=NATURAL, default=0, help="Frame of animations to read, counted from 0."),
        input_option("--limit", type=POSITIVE, show_default="all", help="Process the first N images only."),
        input_option(
            "--max-pixels",
            type=POSITIVE,
            show_default="as many as fit into 720 MB",
            help="Maximum number of pixels of an image.",
        ),
    ],
)


@dataclass(frozen=True)
class OutputOptions:
    """Options for printing and writing results."""

    json: bool
    to: str | None
    out: Path | None
    existing: Existing
    restart: bool
    resume: bool
    strict: bool
    dry_run: bool
    quiet: bool
    progress_form: str
    report: Path | None


def output_options(formats: Sequence[str] = LISTS) -> Callable[[Function], Callable[..., None]]:
    """Return the decorator that adds the output options, with `formats` as the values of `--to`."""
    return option_group(
        "output",
        OutputOptions,
        [
            json_option,
            output_option(
                "--to",
                type=Choice(formats),
                metavar="FORMAT",
                show_default="print only",
                help=f"Format to write: {', '.join(formats)}.",
            ),
            output_option("--out", type=PATH, metavar="PATH", help="File to write, or folder for sidecars."),
            output_option(
                "--existing",
                type=Choice(EXISTING),
                default="skip",
                help="Action for images that already have a result.",
            ),
            resume_option,
            output_option("--restart", is_flag=True, help="Process all images again, and replace earlier results."),
            output_option("--strict", is_flag=True, help="Stop at the first image that fails."),
            output_option(
                "--dry-run", is_flag=True, help="Print the planned action for each image, and write nothing."
            ),
            output_option("--quiet", is_flag=True, help="Print no progress and no summary, only errors."),
            output_option(
                "--progress",
                "progress_form",
                type=Choice(PROGRESS),
                metavar="FORM",
                default="auto",
                help="Form of the progress on standard error: auto, none, or json, one object per line.",
            ),
            report_option,
        ],
    )


@dataclass(frozen=True)
class ModelOptions:
    """Options for loading a model."""

    model: str
    device: str
    engine: EngineName
    precision: PrecisionOption
    fast: bool
    batch_size: int | None
    num_workers: int | None
    threads: int | None
    offline: bool

    def choose(self) -> EngineChoice:
        """Return the engine and precision that `load` will use.

        Raises:
            click.UsageError: --fast comes with an engine or a precision.
        """
        from openblip.engine.choice import choose

        if not self.fast and self.precision != "auto":
            return choose(self.engine, self.precision, "cpu")
        if self.fast and (self.engine, self.precision) != (defaults.ENGINE, defaults.PRECISION):
            raise click.UsageError("--fast chooses engine and precision: leave out --engine and --precision")
        from openblip.engine.device import resolve_device  # imports torch

        device = resolve_device(self.device, cpu_only=self.engine == "openvino")
        return choose(self.engine, "auto", device.type)

    def load(self, name: str | None = None) -> Blip:
        """Load the model, or another model `name` with the same options."""
        if self.offline:
            prepare(offline=True)
        from openblip import blip  # imports torch, which --help must not

        precision = "auto" if self.fast else self.precision
        if precision == "auto":
            _print_once(str(self.choose()))
        return blip.load(
            name or self.model,
            device=self.device,
            engine=self.engine,
            precision=precision,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            threads=self.threads,
            offline=self.offline or None,
        )


model_options = option_group(
    "model",
    ModelOptions,
    [
        model_option(
            "-m",
            "--model",
            metavar="NAME",
            default=DEFAULT_MODEL,
            help="Model to run: a bundle (pocket, base, large), a name listed by `openblip models`, a hub id, a "
            "folder, a bundle.json or a .pth file.",
        ),
        device_option,
        model_option(
            "--engine",
            metavar="ENGINE",
            default=defaults.ENGINE,
            help="Engine to run the model with: auto, torch, compiled or openvino.",
        ),
        precision_option,
        model_option(
            "--fast", is_flag=True, help="Use the fastest engine and precision; results may differ slightly from fp32."
        ),
        model_option(
            "--batch-size",
            type=BatchSize(),
            metavar="auto|N",
            show_default="auto",
            help="Images per batch; results do not depend on it.",
        ),
        model_option("--num-workers", type=NATURAL, show_default="auto", help="Threads that load images."),
        threads_option,
        offline_option,
    ],
)


@dataclass(frozen=True)
class RayOptions:
    """Options for running a job on Ray."""

    ray: str | None
    workers: int | None


ray_options = option_group(
    "cluster",
    RayOptions,
    [
        model_option(
            "--ray",
            metavar="ADDRESS",
            show_default="this process",
            help="Run on Ray: auto, local or an address. The job writes one file per shard into the folder --out.",
        ),
        model_option(
            "--workers",
            type=POSITIVE,
            show_default="one per GPU or core",
            help="Ray actors, each with its own model; without --ray, the same as --num-workers.",
        ),
    ],
)


@cache
def _print_once(line: str) -> None:
    """Print a line on standard error, once in a process."""
    click.echo(line, err=True)


def prepare(*, threads: int | None = None, offline: bool = False) -> None:
    """Apply the options that concern the whole process, before anything heavy is imported."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it at import, our own downloads at each call
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
