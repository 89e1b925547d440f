"""The input and the output of the commands over images."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

import click

from openblip import __version__
from openblip.cli.command import FAILED, SOME_FAILED
from openblip.cli.console import print_json, print_table, printable_line
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions, RayOptions
from openblip.errors import InputError, JobError

if TYPE_CHECKING:
    from openblip.jobs.decisions import Decision
    from openblip.jobs.drawings import Drawings
    from openblip.jobs.items import FieldsOf
    from openblip.jobs.journal import Identity
    from openblip.jobs.reporting import JobProgress
    from openblip.jobs.run import Items, ItemStatus, Outcome, Run, SinkRun
    from openblip.jobs.sharded import MakeAnnotator
    from openblip.jobs.sinks import Sink
    from openblip.tasks import TaskName

SUMMARY: dict[Outcome, str] = {
    "computed": "written",
    "done": "done before",
    "existing": "with an existing result",
    "edited": "edited since and kept",
    "failed": "failed",
}
PLAN = {
    "Compute": "would be computed",
    "Restore": "would be written from the journal",
    "Fail": "cannot be computed",
    "done": "is done",
    "existing": "has a result",
    "edited": "was edited since",
}


SMALL_MODEL = "note: pocket is a small model to try openblip with; --model base is the published one"


class ImageJob:
    """The input and the output of one call of a command over images.

    Args:
        command: Name of the command.
        images: Paths that the user named.
        input: How the images are found and read.
        output: Options of printing and writing.
        model: The model.
        columns: Columns of the printed table after the image, with the field of the records that each shows; or the
            names of the columns only, for a command that passes its own lines to `show`.
        optional: Columns to leave out if all their cells are empty.
        belongs: Return whether a row of an existing list belongs to this job, rather than to other questions or labels.
        key_fields: Fields that, with the path, identify an item in a list.
        ext: Suffix of sidecar files.
        naming: Name of sidecar files: "stem" or "full".
        separator: Text between several results in one file.
        cluster: Whether the job runs on Ray.
    """

    def __init__(
        self,
        command: str,
        images: Sequence[str],
        input: InputOptions,
        output: OutputOptions,
        model: ModelOptions,
        *,
        columns: Mapping[str, str] | Sequence[str],
        optional: Sequence[str] = (),
        belongs: Callable[[Mapping[str, Any]], bool] = lambda row: True,
        key_fields: Sequence[str] = (),
        ext: str = ".txt",
        naming: Literal["stem", "full"] = "stem",
        separator: str = "\n",
        cluster: RayOptions | None = None,
    ) -> None:
        if not images:
            raise click.UsageError("expected at least one image or folder, got none")
        if cluster is not None and cluster.workers is not None and cluster.ray is None:
            model = replace(model, num_workers=cluster.workers)  # without actors, the threads that load images
        on_ray = cluster is not None and cluster.ray is not None
        if on_ray:
            check_ray_options(output)
        if output.to is None and (output.out or output.restart or output.existing != "skip"):
            to = Path(output.out).suffix.removeprefix(".") if output.out else ""
            hint = f", such as --to {to}" if to in ("jsonl", "csv", "parquet", "npy") else ""
            raise click.UsageError(f"--out, --restart and --existing require --to FORMAT{hint}")
        if output.resume and output.restart:
            raise click.UsageError("--resume and --restart exclude each other")
        self.command = command
        self.paths = list(read_paths(images)) if "-" in images else images
        self.input, self.output, self.model = input, output, model
        self.sink: Sink | None = None
        self._columns = ["image", *columns]
        self._optional = optional
        self._lines: list[Sequence[object]] = []
        self._fields = list(columns.values()) if isinstance(columns, Mapping) else []
        self._statuses: list[ItemStatus] = []
        self._progress: JobProgress | None = None
        self._reasons: Counter[str] = Counter()
        self._misplaced = False  # an absolute path of a list does not exist
        from openblip.data.skips import Skips
        from openblip.preprocess.limits import DecodeLimits, set_default_limits

        self.skips = Skips()
        self.mapping = input.mapping() if input.columns else {}
        limits = DecodeLimits() if input.max_pixels is None else DecodeLimits(None, input.max_pixels)
        set_default_limits(limits)
        if output.to is not None and not on_ray:
            from openblip.jobs.items import common_folder
            from openblip.jobs.sinks import SinkOptions, open_sink

            out = None if output.out is None else str(output.out)
            home = common_folder(self.paths)
            options = SinkOptions(out, home, command, output.existing, ext, naming, separator, belongs, key_fields)
            self.sink = open_sink(output.to, options)

    def open_items(
        self, *, columns: Sequence[str] = (), fields_of: FieldsOf | None = None, pairs: bool = False
    ) -> Items:
        """Return the items that the user named; see [`open_items`][openblip.jobs.items.open_items]."""
        from openblip.data.skips import PathFilter
        from openblip.jobs.items import ListFormat, open_items

        base = None if self.sink is None else self.sink.base
        items = open_items(
            self.paths,
            recursive=self.input.recursive,
            base=base,
            pairs=pairs,
            lists=ListFormat(self.input.images_folder, self.mapping, columns, fields_of),
            chosen=PathFilter(self.input.include, self.input.exclude),
            skips=self.skips,
        )
        return items if self.input.limit is None else limit_items(items, self.input.limit)

    def open_drawings(self, path: Path | None, *, per_item: int = 1) -> Drawings | None:
        """Return the output for drawings, if `path` names one."""
        if path is None:
            return None
        from openblip.data.sources.images import path_kind
        from openblip.jobs.drawings import Drawings

        try:
            return Drawings(path, single=[path_kind(path) for path in self.paths] == ["image"], per_item=per_item)
        except InputError as error:
            raise click.UsageError(str(error)) from error

    def run_on_ray(
        self,
        cluster: RayOptions,
        make_annotator: MakeAnnotator,
        models: Mapping[str, Sequence[TaskName]],
        options: Mapping[str, Any],
        *,
        columns: Sequence[str] = (),
        fields_of: FieldsOf | None = None,
    ) -> None:
        """Run the job on Ray with one output file per shard, and exit with the code of the run.

        Args:
            cluster: Where to run.
            make_annotator: Loads the model; it travels to other processes.
            models: The tasks of each model that computes results, by the model's name.
            options: Options of the command that change the results.
            columns: Extra columns of lists that `fields_of` reads.
            fields_of: Function that returns the fields of each item in a record of a list.

        Raises:
            click.UsageError: An option does not apply to Ray.
        """
        from openblip.io import progress
        from openblip.jobs.ray import run_on_ray
        from openblip.jobs.sharded import ShardedJob, run_sharded

        output = self.output
        job = ShardedJob(str(output.out), str(output.to), self.model.model, make_annotator, fields_of, tuple(columns))
        execute = run_on_ray(str(cluster.ray), workers=cluster.workers, cpus=self.model.threads or 1)
        with progress.bar("shards", visible=False if output.quiet else None) as bar:
            counts = run_sharded(
                self.paths,
                job,
                self._identify(models, options),
                execute,
                images=self.input.images_folder,
                recursive=self.input.recursive,
                notify=lambda done, total: bar.update(done, total),
                skips=self.skips,
            )
        if not output.quiet:
            if self.skips.counts:
                click.echo(f"skipped: {self.skips.describe()}", err=True)
            words = (("computed", "written"), ("failed", "failed"), ("done", "shards done before"))
            parts = [f"{counts[name]} {text}" for name, text in words if counts[name]]
            click.echo(", ".join(parts) or "nothing to do", err=True)
        if counts["failed"]:
            raise click.exceptions.Exit(SOME_FAILED if counts["computed"] else FAILED)

    @contextmanager
    def open_run(
        self, items: Items, models: Mapping[str, Sequence[TaskName]], options: Mapping[str, Any]
    ) -> Iterator[Run | SinkRun]:
        """Start the run, or print its plan and exit for `--dry-run`.

        Args:
            items: The items.
            models: The tasks of each model that computes results, by the model's name.
            options: Options of the command that change the results.
        """
        from openblip.jobs.run import Run, open_sink_run, plan_run

        output, restart = self.output, self.output.restart
        identity = None if self.sink is None else self._identify(models, options)
        if output.dry_run:
            self._print_plan(plan_run(items, self.sink, identity, restart=restart))
        run: Run | SinkRun
        with ExitStack() as stack:
            if self.sink is None or identity is None:
                run = Run(items, self.model.model)
            else:
                opened = open_sink_run(
                    items, self.sink, identity, model=self.model.model, restart=restart, skips=self.skips
                )
                run = stack.enter_context(opened)
            total = len(items) if isinstance(items, Sequence) else None
            if (total != 1 or output.progress_form == "json") and not output.quiet and output.progress_form != "none":
                from openblip.jobs.reporting import report_progress

                lines = self.sink is not None
                self._progress = stack.enter_context(report_progress(total, lines=lines, form=output.progress_form))
            try:
                yield run
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(self._describe_interrupt(run, total)) from error

    def _describe_interrupt(self, run: Run | SinkRun, total: int | None) -> str:
        """Return the number of finished items, and how to resume."""
        of_total = "" if total is None else f" of {total}"
        done = f"{run.counts.total()}{of_total} images done"
        if self.sink is None:
            return f"{done}; nothing is stored without --to"
        return f"{done}; run the same command again to resume"

    def show(self, status: ItemStatus, lines: Iterable[Sequence[object]] | None = None) -> None:
        """Print the status of an item, or keep it for the table and the report.

        Args:
            status: The status.
            lines: Cells of the item's lines in the table, after the image; by default the fields of `columns`.

        Raises:
            JobError: The item failed, with `--strict`.
        """
        item, output = status.item, self.output
        if self._progress is not None:
            self._progress.advance(failed=status.error is not None)
        if output.report is not None:
            self._statuses.append(status)
        if status.error is not None:
            from openblip.jobs.reporting import failure_kind

            kind = failure_kind(status.error)
            self._reasons[kind] += 1
            self._misplaced = self._misplaced or (kind == "missing" and is_absolute(item.name))
            reason = status.error.removeprefix(f"cannot read {item.name}: ")
            self._print_line(f"error: {printable_line(f'{item.name}: {reason}')}")
        elif status.outcome == "edited" and not output.quiet:
            self._print_line(f"note: {printable_line(item.name)}: its output was edited since, and is kept")
        if self.sink is None and output.json:
            print_records(status)
        elif self.sink is None:
            if lines is None:
                lines = [[row.get(name) for name in self._fields] for row in status.records]
            self._lines += [[item.name, *line] for line in lines]
        if output.strict and status.error is not None:
            raise JobError(f"stopped at {item.name}, which failed (--strict)")

    def finish(self, run: Run | SinkRun) -> None:
        """Print the table or the summary, write the report, and exit with the code of the run.

        Raises:
            click.exceptions.Exit: Some items failed (exit code 3), or all (1).
        """
        output, counts = self.output, run.counts
        if self._lines:
            used = [
                index
                for index, name in enumerate(self._columns)
                if name not in self._optional or any(line[index] is not None for line in self._lines)
            ]
            print_table([self._columns[i] for i in used], [[line[i] for i in used] for line in self._lines])
        if output.report is not None:
            from openblip.jobs.sheet import write_sheet

            pages = write_sheet(output.report, self._statuses, self.sink)
            if not output.quiet:
                images = plural(len(self._statuses), "image")
                click.echo(f"{output.report}: {images} on {plural(pages, 'page')}", err=True)
        reasons, skips = dict(self._reasons.most_common()), self.skips
        if self.sink is not None and output.json:
            summary: dict[str, Any] = {outcome: counts[outcome] for outcome in SUMMARY}
            summary |= {name: value for name, value in (("reasons", reasons), ("skipped", skips.totals())) if value}
            print_json(summary)
        elif self.sink is not None and not output.quiet:
            parts = [f"{counts[outcome]} {words}" for outcome, words in SUMMARY.items() if counts[outcome]]
            click.echo(", ".join(parts) or "nothing to do", err=True)
        if not output.quiet:
            if len(reasons) > 1 or counts["failed"] > 1:
                click.echo(f"failed: {', '.join(f'{count} {kind}' for kind, count in reasons.items())}", err=True)
            if skips.counts:
                click.echo(f"skipped: {skips.describe()}", err=True)
            if self._misplaced and self.input.images_folder is None:
                hint = "the list names absolute paths that do not exist here; name the folder of the images"
                click.echo(f"hint: {hint} with --images DIR", err=True)
        if self.model.model == "pocket" and counts["computed"] and not (output.json or output.quiet):
            click.echo(SMALL_MODEL, err=True)
        if counts["failed"]:
            raise click.exceptions.Exit(FAILED if counts["failed"] == counts.total() else SOME_FAILED)

    def _identify(self, models: Mapping[str, Sequence[TaskName]], options: Mapping[str, Any]) -> Identity:
        from openblip.checkpoints.fingerprint import fingerprint
        from openblip.engine.choice import resolve_engine
        from openblip.jobs.journal import Identity

        output, model, choice = self.output, self.model, self.model.choose()
        hashes: dict[str, str] = {}
        for name, tasks in models.items():
            for task, value in fingerprint(name, tasks, offline=model.offline or None).items():
                hashes[task if name == model.model else f"{name}/{task}"] = value
        all_options = {
            "to": output.to,
            "existing": output.existing,
            "frame": self.input.frame,
            "engine": resolve_engine(choice) if choice.precision == "int8" else choice.engine,
            "precision": choice.precision,
            **options,
        }
        # Options that are not set are left out, so that a new option does not change the identity of older jobs.
        set_options = {
            name: value
            for name, value in all_options.items()
            if value is not None and value is not False and value not in ("", [], ())
        }
        ran = {
            "requested": "auto:auto" if model.fast else f"{model.engine}:{model.precision}",
            "engine": resolve_engine(choice),
            "precision": choice.precision,
            "version": __version__,
        }
        return Identity(self.command, hashes, set_options, ran)

    def _print_plan(self, decisions: Iterator[Decision]) -> None:
        """Print the decision about each item, and exit."""
        from openblip.jobs.decisions import Fail, Skip
        from openblip.jobs.items import Item

        counts: Counter[str] = Counter()
        for decision in decisions:
            words = PLAN[decision.reason if isinstance(decision, Skip) else type(decision).__name__]
            counts[words] += 1
            target = ""
            if self.sink is not None and isinstance(decision.item, Item) and not isinstance(decision, Fail):
                target = f" -> {self.sink.target(decision.item)}"
            reason = f" ({decision.error})" if isinstance(decision, Fail) else ""
            click.echo(printable_line(f"{decision.item.name}{target}: {words}{reason}"))
        if not self.output.quiet:
            click.echo(", ".join(f"{count} {words}" for words, count in counts.items()) or "nothing", err=True)
        raise click.exceptions.Exit(0)

    def _print_line(self, text: str) -> None:
        """Print one line on standard error, above the progress bar."""
        line = " ".join(text.splitlines())
        if self._progress is not None:
            self._progress.print(line)
        else:
            click.echo(line, err=True)


def limit_items(items: Items, limit: int) -> Items:
    """Return the first `limit` items."""
    return items[:limit] if isinstance(items, Sequence) else islice(items, limit)


def check_ray_options(output: OutputOptions) -> None:
    """Raise `click.UsageError` for output options that do not apply to Ray."""
    from openblip.jobs.sharded import FORMATS

    if output.to not in FORMATS or output.out is None:
        raise click.UsageError(f"--ray writes one file per shard: it needs --to {'|'.join(FORMATS)} and --out DIR")
    if output.out.suffix.lower().removeprefix(".") in FORMATS:
        raise click.UsageError(f"--ray writes one file per shard: --out must be a folder, got {output.out}")
    refused = {"json": output.json, "restart": output.restart, "strict": output.strict, "dry-run": output.dry_run}
    refused |= {"report": output.report is not None, "existing": output.existing != "skip"}
    for name, is_set in refused.items():
        if is_set:
            raise click.UsageError(f"--{name} does not apply to --ray")


def read_paths(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths, with the lines of standard input in place of "-"."""
    for path in paths:
        if path == "-":
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from (line for line in lines if line)
        else:
            yield path


def read_texts(option: str, texts: Sequence[str], path: Path | None) -> list[str]:
    """Return the texts of an option and of a file with one text per line.

    Raises:
        click.UsageError: There is no text.
        JobError: The file cannot be read.
    """
    lines = list(texts)
    if path is not None:
        try:
            content = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise JobError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise JobError(f"{path} must be UTF-8") from error
        lines += [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        example = getattr(click.get_current_context().command, "example", "").partition("\n")[0]
        raise click.UsageError(f"{option} is required, as in: {example}")
    return lines


def is_absolute(name: str) -> bool:
    """Return whether a path is absolute here or on Windows."""
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()


def print_records(status: ItemStatus) -> None:
    """Print the records of an item, or its error, as JSON lines."""
    from openblip.jobs.items import Item
    from openblip.jobs.records import order_fields, unpack_embedding

    item = status.item
    head = {"path": item.paths_from(None) if isinstance(item, Item) else item.name, "index": item.index}
    for record in [{"error": status.error}] if status.error is not None else status.records:
        row = order_fields(record)
        if "embedding" in row:
            row["embedding"] = unpack_embedding(row["embedding"]).tolist()
        print_json({**head, **row})
    sys.stdout.flush()


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
