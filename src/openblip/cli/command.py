"""The click classes of the command line: help by panels, defaults, one example, and errors in one line."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from openblip.errors import InputError, OpenBlipError
from openblip.tasks import did_you_mean

FAILED = 1
WRONG_USAGE = 2
SOME_FAILED = 3
INTERRUPTED = 130

# The panels of a command's help. They appear in the order of their first option, OTHER last.
INPUT = "Input"
DECODING = "Decoding"
OUTPUT = "Output"
MODEL = "Model"
OTHER = "Other"

SHORT_NAMES = {"--max-tokens": "--max-new-tokens", "--beams": "--num-beams"}
"""Names of options that are accepted without being listed."""

Function = TypeVar("Function", bound=Callable[..., None])


class Option(click.Option):
    """An option that is listed in a panel of the help, with its default."""

    def __init__(self, *args: Any, panel: str = OTHER, **settings: Any) -> None:
        super().__init__(*args, **{"show_default": True} | settings)
        self.panel = panel

    def make_metavar(self, ctx: click.Context) -> str:
        """Return the placeholder of the value: N for integers, X for other numbers."""
        if self.metavar is None and isinstance(self.type, (click.types.IntParamType, click.types.FloatParamType)):
            return "N" if isinstance(self.type, click.types.IntParamType) else "X"
        return super().make_metavar(ctx)

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return the notes after the help text: the default, and no range."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default  # without click's parentheses
        return extra


class Choice(click.Choice):  # type: ignore[type-arg]  # generic in recent releases of click only
    """One of several names. The error suggests the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value, or fail with the nearest name."""
        names = list(map(str, self.choices))
        if value not in names:
            self.fail(f"must be one of {', '.join(names)}, got {value!r}{did_you_mean(str(value), names)}", param, ctx)
        return value


class Argument(click.Argument):
    """A positional argument that has a help text."""

    panel = INPUT

    def __init__(self, *args: Any, help: str, metavar: str, **settings: Any) -> None:
        super().__init__(*args, metavar=metavar, **settings)
        self.help_record = metavar, help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the name and the help text of the argument."""
        return self.help_record


class Command(click.Command):
    """A command whose help groups the options in panels and ends with an example.

    Args:
        example: One or more command lines.
    """

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with short names of options in place of the full ones."""
        options = {option for parameter in self.params for option in parameter.opts}
        full_names = {short: name for short, name in SHORT_NAMES.items() if name in options and short not in options}
        written = [arg.partition("=") for arg in args]
        return super().parse_args(ctx, [full_names.get(name, name) + sign + value for name, sign, value in written])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, description, panels of options and example."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(parameter, "panel", OTHER), []).append(record)
        for panel in sorted(panels, key=lambda panel: panel == OTHER):
            with formatter.section(panel):
                formatter.write_dl(panels[panel], col_max=28)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"  {line}\n")


class Group(click.Group):
    """A group of commands that reports errors in one line and an exit code, without a traceback."""

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.example = example

    format_epilog = Command.format_epilog

    def command(  # type: ignore[override]  # typed, so that mypy accepts it as a decorator
        self, name: str | None = None, **settings: Any
    ) -> Callable[[Callable[..., None]], click.Command]:
        """Return a decorator that makes a command of a function and adds it to the group."""
        return super().command(name, cls=Command, **settings)

    def group(self, name: str, **settings: Any) -> Callable[[Callable[..., None]], click.Group]:  # type: ignore[override]
        """Return a decorator that makes a group of a function and adds it to the group."""
        return super().group(name, cls=Group, **settings)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they were added."""
        return list(self.commands)

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command line, with output that cannot fail and without the warnings of decoders."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")  # a pipe on Windows cannot encode every file name
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)
        return super().main(*args, **settings)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, or fail with the nearest name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            hint = did_you_mean(args[0], self.commands)
            if "caption" in self.commands and Path(args[0]).exists():
                ctx.fail(f"name a command before the images, as in: openblip caption {' '.join(args)}")
            ctx.fail(f"command must be one of {', '.join(self.commands)}, got {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn its errors into one line and an exit code."""
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            command = (error.ctx or ctx).command_path
            click.echo(f"error: {error.format_message()} (see {command} --help)", err=True)
            raise click.exceptions.Exit(WRONG_USAGE) from error
        except OpenBlipError as error:
            click.echo(f"error: {error}", err=True)
            raise click.exceptions.Exit(WRONG_USAGE if isinstance(error, InputError) else FAILED) from error
        except KeyboardInterrupt as error:
            click.echo(f"interrupted: {error}" if str(error) else "interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from error


@contextmanager
def usage_errors(*kinds: type[OpenBlipError]) -> Iterator[None]:
    """Turn errors about the values of options into wrong usage, exit code 2."""
    try:
        yield
    except kinds as error:
        raise click.UsageError(str(error)) from error


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., None]], Command]:
    """Return a decorator that makes a [`Command`][openblip.cli.command.Command] of a function."""
    return click.command(name, cls=Command, **settings)


def group(name: str, **settings: Any) -> Callable[[Callable[..., None]], Group]:
    """Return a decorator that makes a [`Group`][openblip.cli.command.Group] of a function."""
    return click.group(name, cls=Group, **settings)


option = partial(click.option, cls=Option)
input_option = partial(option, panel=INPUT)
decoding_option = partial(option, panel=DECODING)
output_option = partial(option, panel=OUTPUT)
model_option = partial(option, panel=MODEL)
argument = partial(click.argument, cls=Argument)


def option_group(
    name: str, options_class: type, declarations: Sequence[Callable[[Any], Any]]
) -> Callable[[Function], Callable[..., None]]:
    """Return a decorator that adds options to a command and passes them to it as one dataclass.

    Args:
        name: Parameter of the command that receives the dataclass.
        options_class: Dataclass with one field per declared option.
        declarations: Decorators made by `option`, in the order of the help.
    """

    def decorate(function: Function) -> Callable[..., None]:
        @wraps(function)
        def call_with_group(**values: Any) -> None:
            grouped = {field.name: values.pop(field.name) for field in fields(options_class)}
            function(**values, **{name: options_class(**grouped)})

        decorated: Callable[..., None] = call_with_group
        for declare in reversed(declarations):
            decorated = declare(decorated)
        return decorated

    return decorate
