"""The command line: ``openblip COMMAND``. One small file per command, each a thin shell over a library function.

Nothing here imports torch: commands import what they need when they run, so that ``openblip --help`` is immediate.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some items failed, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from openblip import __version__
from openblip.cli import (
    ask,
    caption,
    classify,
    compare,
    convert,
    doctor,
    embed,
    eval,
    explain,
    ground,
    match,
    models,
    recipe_test,
    train,
)
from openblip.errors import OpenBlipError

FAILED = 1
INTERRUPTED = 130


class _Group(TyperGroup):
    """Turns the errors that OpenBLIP raises on purpose into one line and an exit code, and never shows a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OpenBlipError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    name="openblip",
    no_args_is_help=True,
    add_completion=True,  # --install-completion, for bash, zsh, fish and PowerShell
    rich_markup_mode=None,  # plain help: square brackets are ours ([DEC]), and it starts faster
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openblip {__version__}")
        raise typer.Exit


@app.callback()
def openblip(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """BLIP in full: captions, answers, matches and embeddings for pictures.

    \b
    Example:
      openblip caption photo.jpg
    """


app.command()(caption.caption)
app.command()(ask.ask)
app.command()(match.match)
app.command()(embed.embed)
app.command()(classify.classify)
app.command()(ground.ground)
app.command()(compare.compare)
app.command()(explain.explain)
app.command()(models.models)
app.command()(convert.convert)
app.command()(doctor.doctor)
app.command("test")(recipe_test.evaluate)
app.add_typer(train.app)
app.add_typer(eval.app)


def main() -> None:
    """The entry point of the ``openblip`` script."""
    app()
