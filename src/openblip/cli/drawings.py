"""Where a command puts the pictures it draws: one ``.png`` file, or a folder that mirrors where their inputs lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL import Image

    from openblip.jobs.items import Item


class Drawings:
    """Saves ``each`` drawings of every item under the item's name, none over another of the same run.

    Names follow from all items of the job in their order, so that a job that goes on gives the same ones. Raises
    :class:`click.UsageError` for one file unless there is one item ``alone``, and for a place that is no PNG file.
    """

    def __init__(self, out: Path, *, alone: bool, each: int = 1) -> None:
        self.out, self.each = out, each
        self.single = out.suffix.lower() == ".png" and not out.is_dir()
        self._taken: set[str] = set()
        self._names: dict[str, list[str]] = {}
        if self.single and not (alone and each == 1):
            raise click.UsageError(f"--draw {out} is one file for several pictures: give a folder")
        if not self.single and (out.is_file() or out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp")):
            raise click.UsageError(f"--draw {out} is neither a .png file nor a folder")

    def claim(self, item: Item) -> None:
        """Find the names of an item's drawings; to be called for every item, in order."""
        steps = [step for step in item.inside.split("/") if step not in ("", ".", "..")]
        stem = Path(*steps).with_suffix("") if steps else Path("picture")
        self._names[item.key] = [self._name(str(stem)) for _ in range(self.each)]

    def save(self, item: Item, picture: Image.Image, number: int = 0) -> Path:
        """Write the ``number``-th drawing of an item whole or not at all; the path it has now."""
        from openblip.jobs.files import replace_file

        target = self.out if self.single else self.out / f"{self._names[item.key][number]}.png"
        with replace_file(str(target), sync=False) as file:
            picture.save(file, "PNG")
        return target

    def _name(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        return name
