"""Where a command puts the pictures it draws: one ``.png`` file, or a folder with one for each input."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from PIL import Image


class Drawings:
    """Saves pictures under the names of their inputs, none over another of the same run.

    Raises :class:`typer.BadParameter` for one file for several inputs, and for a place that is no PNG file.
    """

    def __init__(self, out: Path, inputs: int) -> None:
        self.out = out
        self.single = out.suffix.lower() == ".png" and not out.is_dir()
        self.taken: set[str] = set()
        if self.single and inputs > 1:
            raise typer.BadParameter(f"--out {out} is one file for {inputs} pictures: give a folder")
        if not self.single and (out.is_file() or out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp")):
            raise typer.BadParameter(f"--out {out} is neither a .png file nor a folder")

    def save(self, source: str, picture: Image.Image) -> Path:
        """Write a picture whole or not at all; the path it has now."""
        target = self.out if self.single else self.out / f"{self._name(source)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            picture.save(temporary, "PNG")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _name(self, source: str) -> str:
        stem = Path(urlsplit(source).path if "://" in source else source).stem or "picture"
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name)
        return name
