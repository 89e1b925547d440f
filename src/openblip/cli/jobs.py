"""The way of a command over images from what it names to what is printed or written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openblip.cli import options as o
from openblip.cli.console import finish, print_json, print_table
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions
from openblip.errors import JobError
from openblip.tasks import TaskName

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.data.problems import Problem
    from openblip.data.sources.images import RootedSource
    from openblip.jobs.items import Asked, Item, Unusable
    from openblip.jobs.journal import Identity
    from openblip.jobs.records import Row
    from openblip.jobs.run import Outcome, Seen, Work
    from openblip.jobs.sinks import Sink


class Job:
    """One call of a command over images."""

    def __init__(
        self,
        name: str,
        images: Sequence[str],
        input: InputOptions,
        output: OutputOptions,
        model: ModelOptions,
        pairs: bool = False,
    ) -> None:
        self.name, self.images, self.pairs = name, images, pairs
        self.input, self.output, self.model = input, output, model
        if not images:
            raise click.UsageError("name some pictures, or a folder of them")
        output.check()
        o.prepare(offline=model.offline)

    @cached_property
    def paths(self) -> list[str]:
        """What was named, in its order, standard input read."""
        return list(_paths(self.images))

    @property
    def lone(self) -> bool:
        """Whether one picture was named, and nothing that could hold more."""
        from openblip.data.sources.images import path_kinds

        return path_kinds(self.paths) == ["image"]

    @cached_property
    def blip(self) -> Blip:
        """The model, loaded when first asked for."""
        return self.model.load()

    def shrink(self) -> bool:
        """Halve the batches, if they can be."""
        self.blip.batch_size, before = max(1, self.blip.batch_size // 2), self.blip.batch_size
        return self.blip.batch_size < before

    def run(
        self,
        work: Work,
        *,
        tasks: Sequence[TaskName],
        options: Mapping[str, Any],
        table: Mapping[str, str],
        models: Mapping[str, Sequence[TaskName]] | None = None,
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
        order, before it is its turn. Raises :class:`click.Exit` with 3 if some pictures failed, 1 if all did.
        """
        from openblip.jobs.items import gather, nothing_more, streamed
        from openblip.jobs.reporting import ConsoleReporter
        from openblip.jobs.run import Job

        s = self.output
        parts = self._parts(keep)
        sink = identity = None
        if s.to is not None:
            sink = self._sink(s.to, concerns, [asks[0]] if asks else [], ext, separator)
            identity = self._identity(tasks, models or {}, {"ext": ext, "separator": separator, **options})
        base, asked = sink.base if sink else None, asks[1] if asks else nothing_more
        items = _shown_to(each, gather(parts, base=base, asked=asked, pairs=self.pairs))
        shown = _Shown(s, table, lines, sink)
        job = Job(
            items if streamed(parts) else list(items), work, sink, identity, self.model.model, s.restart, s.strict,
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

        if self.pairs and "image" in (named := path_kinds(self.paths)):
            if named != ["image", "image"]:
                raise click.UsageError("name two pictures, or lists of pairs")
            return [RootedSource(open_source([{"image": self.paths}]), None)]
        folder = self.input.images_folder
        return list(open_images(self.paths, recursive=self.input.recursive, images=folder, keep=keep))

    def _sink(
        self, to: str, concerns: Callable[[Mapping[str, Any]], bool], asked: Sequence[str], ext: str, separator: str
    ) -> Sink:
        from openblip.jobs.items import home
        from openblip.jobs.sinks import SinkOptions, open_sink

        out = None if self.output.out is None else str(self.output.out)
        existing = self.output.existing
        return open_sink(to, SinkOptions(out, home(self.paths), self.name, existing, ext, separator, concerns, asked))

    def _identity(
        self, tasks: Sequence[TaskName], models: Mapping[str, Sequence[TaskName]], options: Mapping[str, Any]
    ) -> Identity:
        from openblip.checkpoints.fingerprint import fingerprint
        from openblip.jobs.identity import told
        from openblip.jobs.journal import Identity

        s, m = self.output, self.model
        model = fingerprint(m.model, tasks, offline=m.offline or None)
        for name, served in models.items():
            model |= {f"{name}/{t}": v for t, v in fingerprint(name, served, offline=m.offline or None).items()}
        common = {"to": s.to, "existing": s.existing, "frame": self.input.frame}
        common |= {"engine": m.engine, "precision": m.precision}
        return Identity(self.name, model, told(common | dict(options)))

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
            click.echo(f"{one.item.name}{where}: {words[one.action]}{why}")
        if not self.output.quiet:
            click.echo(", ".join(f"{count} {words[action]}" for action, count in counts.items()) or "nothing", err=True)


class _Shown:
    """What is printed of a job, as it runs and at its end, and what its page is made of."""

    def __init__(
        self,
        output: OutputOptions,
        table: Mapping[str, str],
        lines: Callable[[Row], Iterable[Sequence[object]]] | None,
        sink: Sink | None,
    ) -> None:
        self.output, self.table, self.sink = output, table, sink
        self._cells = lines or (lambda row: [[row.get(field) for field in table.values()]])
        self._lines: list[list[object]] = []
        self._page: list[Seen] = []

    def see(self, seen: Seen) -> None:
        """One item is through."""
        if self.output.report is not None:
            self._page.append(seen)
        if self.sink is not None:
            return
        name, index = seen.item.name, seen.item.index
        if self.output.json:
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
        if self.output.report is not None:
            from openblip.jobs.sheet import write_sheet

            pages = write_sheet(self.output.report, self._page, self.sink)
            if not self.output.quiet:
                click.echo(f"{self.output.report}: {len(self._page)} pictures on {pages} pages", err=True)
        if self.sink is not None and self.output.json:
            print_json(vars(outcome))
        elif self.sink is not None and not self.output.quiet:
            click.echo(_summary(outcome), err=True)


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
        raise click.UsageError(f"give {option}")
    return found
