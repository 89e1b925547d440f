"""`openblip bootstrap`: the complete bootstrap of the paper in one recipe."""

from __future__ import annotations

from pathlib import Path

import click

from openblip.cli import options as o
from openblip.cli.command import argument, command


@command(example="openblip bootstrap recipes/bootstrap/base.yaml out=runs/bootstrap")
@argument("recipe", type=o.PATH, metavar="RECIPE.yaml", help="YAML file that describes the data and the steps.")
@argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Settings to change, such as capfilt.num=5.")
@o.threads_option
@o.offline_option
def bootstrap(recipe: Path, overrides: tuple[str, ...], threads: int | None, offline: bool) -> None:
    """Train a model on web data that it filters itself (CapFilt).

    To resume, run the same command again. Steps whose settings and inputs did not change are kept.
    """
    o.prepare(threads=threads, offline=offline)
    from openblip.bootstrap import Bootstrap, read_bootstrap

    model = Bootstrap(read_bootstrap(recipe, overrides), lambda line: click.echo(line, err=True)).run()
    click.echo(model)
