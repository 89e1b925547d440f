"""The output of drawings: one PNG file, or a folder that mirrors the folders of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.errors import InputError
from openblip.jobs.files import replace_file
from openblip.jobs.items import Item
from openblip.jobs.run import Items

if TYPE_CHECKING:
    from PIL import Image

    from openblip.jobs.items import UnusableItem

OTHER_SUFFIXES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp")


class Drawings:
    """Writes the drawings of items under the names of the items; no two drawings of a job share a file.

    The names follow from all items of the job, in order, so a resumed job uses the same ones.

    Args:
        out: A `.png` file or a folder.
        single: Whether the job has exactly one item.
        per_item: Number of drawings per item.

    Raises:
        InputError: `out` is one file for several drawings, or neither a `.png` file nor a folder.
    """

    def __init__(self, out: Path, *, single: bool, per_item: int = 1) -> None:
        self.out = out
        self.per_item = per_item
        self.is_file = out.suffix.lower() == ".png" and not out.is_dir()
        self._used_names: set[str] = set()
        self._names: dict[str, list[str]] = {}
        if self.is_file and not (single and per_item == 1):
            raise InputError(f"--draw must be a folder for several drawings, got the file {out}")
        if not self.is_file and (out.is_file() or out.suffix.lower() in OTHER_SUFFIXES):
            raise InputError(f"--draw must be a .png file or a folder, got {out}")

    def name_items(self, items: Items) -> Items:
        """Choose the names of the drawings of all items, and return the items."""
        if isinstance(items, Sequence):
            for item in items:
                self.name_item(item)
            return items
        return map(self.name_item, items)

    def save(self, item: Item, image: Image.Image, number: int = 0) -> Path:
        """Write a drawing of an item and return its path.

        Args:
            item: The item.
            image: The drawing.
            number: Number of the drawing, from 0, for an item with several.

        Raises:
            JobError: The file cannot be written.
        """
        path = self.out if self.is_file else self.out / f"{self._names[item.key][number]}.png"
        with replace_file(str(path), sync=False) as file:
            image.save(file, "PNG")
        return path

    def name_item(self, item: Item | UnusableItem) -> Item | UnusableItem:
        """Choose the names of the drawings of one item, and return the item."""
        if not isinstance(item, Item):
            return item
        steps = [step for step in item.inner_path.split("/") if step not in ("", ".", "..")]
        stem = str(Path(*steps).with_suffix("")) if steps else "picture"
        names = []
        for _ in range(self.per_item):
            name, number = stem, 1
            while name in self._used_names:
                number += 1
                name = f"{stem}-{number}"
            self._used_names.add(name)
            names.append(name)
        self._names[item.key] = names
        return item
