"""What commands over pictures share: their options, and the way from pictures to what is printed or written.

A command states its own options only; :func:`job_command` adds the others and hands it a :class:`Command`::

    @job_command(formats=LISTS)
    def shout(job: Command, loud: bool = False) -> None:
        def work(items: Iterator[Item]) -> Iterator[Result]: ...
        job.run(work, tasks=("caption",), options={"loud": loud}, table={"caption": "text"})
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast, get_type_hints

import typer

from openblip.cli import options as o
from openblip.cli.console import finish, print_json, print_table
from openblip.errors import JobError
from openblip.model.config import ModelKind

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.data.problems import Problem
    from openblip.data.sources.images import RootedSource
    from openblip.jobs.items import Asked, Item, Unusable
    from openblip.jobs.journal import Identity
    from openblip.jobs.records import Row
    from openblip.jobs.run import Outcome, Seen, Work
    from openblip.jobs.sinks import Existing, Sink

LISTS = ("jsonl", "csv", "parquet")
PAIRS: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="LEFT RIGHT|LIST...",
        show_default=False,
        help="Two pictures, or .csv/.jsonl/.parquet lists and .tar shards of pairs; - reads paths.",
    ),
]
EXISTING = ("skip", "overwrite", "append", "prepend")


@dataclass(frozen=True)
class Shared:
    """The options of every command over pictures, as typer takes them."""

    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            show_default=False,
            help="Pictures, folders, globs, .tar shards, .csv/.jsonl/.parquet lists, https addresses; - reads paths.",
        ),
    ] = None
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also what lies below the folders.")] = False
    root: Annotated[
        str | None,
        typer.Option("--images", metavar="DIR", show_default="beside the list", help="Where a list's pictures lie."),
    ] = None
    frame: Annotated[int, typer.Option("--frame", min=0, help="Which frame of animations, from 0.")] = 0
    json: o.Json = False
    to: Annotated[
        str | None, typer.Option("--to", metavar="FORMAT", show_default="nothing is written", help="Write: {formats}.")
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", show_default=False, help="The file to write, or a folder of texts."),
    ] = None
    existing: Annotated[
        str,
        typer.Option("--existing", metavar="|".join(EXISTING), help="What becomes of results that are there already."),
    ] = "skip"
    restart: Annotated[bool, typer.Option("--restart", help="Do again what an earlier run of this job has done.")] = (
        False
    )
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad picture.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary; bad pictures are still told.")] = (
        False
    )
    report: o.Report = None
    model: o.Model = o.DEFAULT_MODEL
    device: o.Device = "auto"
    engine: o.Engine = "torch"
    precision: o.Precision = "fp32"
    batch_size: o.BatchSize = None
    workers: o.Workers = None
    threads: o.Threads = None
    offline: o.Offline = False


def job_command(
    formats: Sequence[str] = LISTS, optional_images: bool = False, pairs: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared options. It is called with a :class:`Command` and its own options by name.

    With ``pairs`` it works on pairs of pictures, elsewhere on single ones.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        shared = {field.name: field for field in fields(Shared)}
        hints = get_type_hints(Shared, include_extras=True)
        hints["to"] = _with_formats(hints["to"], formats)
        if pairs:
            hints["images"] = PAIRS
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def command(**given: Any) -> None:
            common = Shared(**{name: given.pop(name) for name in shared})
            function(Command(function.__name__, common, formats, optional_images, pairs), **given)

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
            for name, field in shared.items()
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [added[0], *own, *added[1:]]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _with_formats(hint: Any, formats: Sequence[str]) -> Any:
    option = typer.Option(
        "--to",
        metavar="FORMAT",
        show_default="nothing is written",
        help=f"What to write: {', '.join(formats)}.",
    )
    return Annotated[hint.__origin__, option]


class Command:
    """One call of a command over pictures."""

    def __init__(
        self, name: str, shared: Shared, formats: Sequence[str], optional_images: bool = False, pairs: bool = False
    ) -> None:
        self.name, self.shared, self.formats, self.pairs = name, shared, formats, pairs
        if not shared.images and not optional_images:
            raise typer.BadParameter("name some pictures, or a folder of them")
        if shared.to is not None and shared.to not in formats:
            raise typer.BadParameter(f"--to is one of {', '.join(formats)}, not {shared.to!r}")
        if shared.existing not in EXISTING:
            raise typer.BadParameter(f"--existing is one of {', '.join(EXISTING)}, not {shared.existing!r}")
        if shared.to is None:
            self._refuse_writing()
        o.prepare(offline=shared.offline)

    def _refuse_writing(self) -> None:
        for name, given in (("--out", self.shared.out), ("--restart", self.shared.restart)):
            if given:
                raise typer.BadParameter(f"{name} goes with --to, which says what to write: {', '.join(self.formats)}")
        if self.shared.existing != "skip":
            raise typer.BadParameter("--existing goes with --to, which says what to write")

    @cached_property
    def paths(self) -> list[str]:
        """What was named, in its order, standard input read."""
        return list(_paths(self.shared.images or ()))

    @property
    def lone(self) -> bool:
        """Whether one picture was named, and nothing that could hold more."""
        from openblip.data.sources.images import path_kinds

        return path_kinds(self.paths) == ["image"]

    @cached_property
    def blip(self) -> Blip:
        """The model, loaded when first asked for."""
        return self.load(self.shared.model)

    def load(self, model: str) -> Blip:
        """Another model, with the same options."""
        s = self.shared
        return o.load(model, s.device, s.engine, s.precision, s.batch_size, s.workers, s.threads, s.offline)

    def shrink(self) -> bool:
        """Halve the batches, if they can be."""
        self.blip.batch_size, before = max(1, self.blip.batch_size // 2), self.blip.batch_size
        return self.blip.batch_size < before

    def run(
        self,
        work: Work,
        *,
        tasks: Sequence[ModelKind],
        options: Mapping[str, Any],
        table: Mapping[str, str],
        models: Mapping[str, Sequence[ModelKind]] | None = None,
        lines: Callable[[Row], Iterable[Sequence[object]]] | None = None,
        concerns: Callable[[Mapping[str, Any]], bool] = lambda row: True,
        keep: Sequence[str] = (),
        asks: tuple[str, Asked] | None = None,
        each: Callable[[Item], None] | None = None,
        ext: str = ".txt",
        separator: str = "\n",
    ) -> None:
        """Do the job: print, or write and go on where it was stopped.

        ``options`` are the command's own that change what is written, ``models`` further models and what they serve.
        ``table`` maps the columns that are printed to fields of the records, or names the columns of ``lines``, which
        makes them of a record. ``keep`` names columns of lists that the command looks at; ``asks`` is the field in
        which a list asks something of a picture alone, and what takes it from there. ``each`` is shown every item, in
        order, before it is its turn. Raises :class:`typer.Exit` with 3 if some pictures failed, 1 if all did.
        """
        from openblip.jobs.items import gather, nothing_more, streamed
        from openblip.jobs.reporting import ConsoleReporter
        from openblip.jobs.run import Job

        s = self.shared
        parts = self._parts(keep)
        sink = identity = None
        if s.to is not None:
            sink = self._sink(s.to, concerns, [asks[0]] if asks else [], ext, separator)
            identity = self._identity(tasks, models or {}, {"ext": ext, "separator": separator, **options})
        base, asked = sink.base if sink else None, asks[1] if asks else nothing_more
        items = _shown_to(each, gather(parts, base=base, asked=asked, pairs=self.pairs))
        shown = _Shown(s, table, lines, sink)
        job = Job(
            items if streamed(parts) else list(items), work, sink, identity, s.model, s.restart, s.strict,
            ConsoleReporter(quiet=s.quiet, lines=sink is not None), shown.see, self.shrink,
        )  # fmt: skip
        if s.dry_run:
            self._plan(job.plan(), sink)
            return
        outcome = job.run()
        shown.finish(outcome)
        finish(outcome.failed, outcome.total)

    def _parts(self, keep: Sequence[str]) -> list[RootedSource | Problem]:
        """Where the pictures come from."""
        from openblip.data.sources import open_source
        from openblip.data.sources.images import RootedSource, open_images, path_kinds

        s = self.shared
        if self.pairs and "image" in (named := path_kinds(self.paths)):
            if named != ["image", "image"]:
                raise typer.BadParameter("name two pictures, or lists of pairs")
            return [RootedSource(open_source([{"image": self.paths}]), None)]
        return list(open_images(self.paths, recursive=s.recursive, images=s.root, keep=keep))

    def _sink(
        self, to: str, concerns: Callable[[Mapping[str, Any]], bool], asked: Sequence[str], ext: str, separator: str
    ) -> Sink:
        from openblip.jobs.items import home
        from openblip.jobs.sinks import SinkOptions, open_sink

        out = None if self.shared.out is None else str(self.shared.out)
        existing = cast("Existing", self.shared.existing)
        return open_sink(to, SinkOptions(out, home(self.paths), self.name, existing, ext, separator, concerns, asked))

    def _identity(
        self, tasks: Sequence[ModelKind], models: Mapping[str, Sequence[ModelKind]], options: Mapping[str, Any]
    ) -> Identity:
        from openblip.jobs.identity import fingerprint, told
        from openblip.jobs.journal import Identity

        s = self.shared
        model = fingerprint(s.model, tasks, offline=s.offline or None)
        for name, served in models.items():
            model |= {f"{name}/{t}": v for t, v in fingerprint(name, served, offline=s.offline or None).items()}
        common = {"to": s.to, "existing": s.existing, "frame": s.frame, "engine": s.engine, "precision": s.precision}
        return Identity(self.name, model, told(common | dict(options)))

    def end(self, applied: int, notes: Sequence[str]) -> None:
        """Say what came of writing edits back; :class:`typer.Exit` with 3 if some could not be."""
        for note in notes:
            typer.echo(f"error: {note}", err=True)
        if not self.shared.quiet:
            typer.echo(f"{applied} edits written", err=True)
        finish(len(notes), applied + len(notes))

    def _plan(self, seen: Iterator[Seen], sink: Sink | None) -> None:
        from openblip.jobs.items import Item

        words = {
            "compute": "would be done", "done": "is done", "restore": "would be written from the journal",
            "there": "has a result already", "edited": "was edited since", "failed": "cannot be done",
        }  # fmt: skip
        counts: dict[str, int] = {}
        for one in seen:
            counts[one.action] = counts.get(one.action, 0) + 1
            where = f" -> {sink.target(one.item)}" if sink and isinstance(one.item, Item) and not one.error else ""
            why = f" ({one.error})" if one.error else ""
            typer.echo(f"{one.item.name}{where}: {words[one.action]}{why}")
        if not self.shared.quiet:
            typer.echo(", ".join(f"{count} {words[action]}" for action, count in counts.items()) or "nothing", err=True)


class _Shown:
    """What is printed of a job, as it runs and at its end, and what its page is made of."""

    def __init__(
        self,
        shared: Shared,
        table: Mapping[str, str],
        lines: Callable[[Row], Iterable[Sequence[object]]] | None,
        sink: Sink | None,
    ) -> None:
        self.shared, self.table, self.sink = shared, table, sink
        self._cells = lines or (lambda row: [[row.get(field) for field in table.values()]])
        self._lines: list[list[object]] = []
        self._page: list[Seen] = []

    def see(self, seen: Seen) -> None:
        """One item is through."""
        if self.shared.report is not None:
            self._page.append(seen)
        if self.sink is not None:
            return
        name, index = seen.item.name, seen.item.index
        if self.shared.json:
            rows = [{"error": seen.error}] if seen.error is not None else seen.records
            for row in rows:
                print_json({"path": _path(seen.item), "index": index, **_printed(row)})
            sys.stdout.flush()
        elif seen.error is None:
            self._lines += [[name, *map(_cell, line)] for row in seen.records for line in self._cells(row)]

    def finish(self, outcome: Outcome) -> None:
        """The table, the page, and the summary of what was written."""
        if self._lines:
            print_table(["image", *self.table], self._lines)
        if self.shared.report is not None:
            from openblip.jobs.sheet import write_sheet

            pages = write_sheet(self.shared.report, self._page, self.sink)
            if not self.shared.quiet:
                typer.echo(f"{self.shared.report}: {len(self._page)} pictures on {pages} pages", err=True)
        if self.sink is not None and self.shared.json:
            print_json(vars(outcome))
        elif self.sink is not None and not self.shared.quiet:
            typer.echo(_summary(outcome), err=True)


def _summary(outcome: Outcome) -> str:
    counts = (
        (outcome.computed, "written"), (outcome.done, "done before"), (outcome.there, "with a result already"),
        (outcome.edited, "edited since and left alone"), (outcome.failed, "failed"),
    )  # fmt: skip
    return ", ".join(f"{count} {words}" for count, words in counts if count) or "there was nothing to do"


def _printed(row: Mapping[str, Any]) -> dict[str, Any]:
    from openblip.jobs.records import unpack_embedding

    return {name: unpack_embedding(v).tolist() if name == "embedding" else v for name, v in row.items()}


def _path(item: Item | Unusable) -> str | list[str]:
    from openblip.jobs.items import Item

    return item.path(None) if isinstance(item, Item) else item.name


def _shown_to(each: Callable[[Item], None] | None, items: Iterator[Item | Unusable]) -> Iterator[Item | Unusable]:
    """The items, each shown to ``each`` on its way."""
    from openblip.jobs.items import Item

    for item in items:
        if each is not None and isinstance(item, Item):
            each(item)
        yield item


def _cell(value: Any) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"  # of a box: four numbers at once
    return "" if value is None else value


def _paths(given: Sequence[str]) -> Iterator[str]:
    """The paths on the command line; ``-`` stands for those on standard input, one in each line."""
    for path in given:
        if path == "-":
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from (line for line in lines if line)
        else:
            yield path


def choice(option: str, value: str, choices: Sequence[str]) -> str:
    """``value``, if it is one of ``choices``."""
    if value not in choices:
        raise typer.BadParameter(f"{option} is one of {', '.join(choices)}, not {value!r}")
    return value


def lines_of(option: str, path: Path | None, given: Sequence[str] | None) -> list[str]:
    """Texts given one by one and in a file, one in each line; at least one."""
    found = list(given or ())
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise JobError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise JobError(f"{path} is not UTF-8") from error
        found += [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise typer.BadParameter(f"give {option}")
    return found
