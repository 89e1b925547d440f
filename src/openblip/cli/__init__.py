"""The command line, `openblip COMMAND`. Each command has a small file and calls library functions.

Commands import torch only when they run, so that `openblip --help` is immediate.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some items failed, 130 interrupted.
"""

from __future__ import annotations

import click

from openblip import __version__
from openblip.cli import (
    ask,
    bootstrap,
    capfilt,
    caption,
    classify,
    compare,
    completion,
    convert,
    doctor,
    embed,
    eval,
    explain,
    export,
    ground,
    index,
    match,
    models,
    recipe_test,
    search,
    serve,
    sheet,
    train,
)
from openblip.cli.command import Group

app = Group(
    "openblip",
    help="Caption images, answer questions about them, match them with texts, and train BLIP models.",
    example="openblip caption photo.jpg",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(__version__, message="%(prog)s %(version)s", prog_name="openblip")(app)
app.add_command(caption.caption)
app.add_command(ask.ask)
app.add_command(match.match)
app.add_command(embed.embed)
app.add_command(classify.classify)
app.add_command(ground.ground)
app.add_command(compare.compare)
app.add_command(explain.explain)
app.add_command(sheet.sheet)
app.add_command(index.index)
app.add_command(search.search)
app.add_command(serve.serve)
app.add_command(models.models)
app.add_command(convert.convert)
app.add_command(export.export)
app.add_command(doctor.doctor)
app.add_command(recipe_test.evaluate)
app.add_command(train.app)
app.add_command(eval.app)
app.add_command(capfilt.app)
app.add_command(bootstrap.bootstrap)
app.add_command(completion.completion)

main = app  # the entry point of the `openblip` script
