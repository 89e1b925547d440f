"""Text or XMP files next to the images, or in a separate tree with the same structure."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from openblip.errors import InputError
from openblip.jobs.descriptions import described_elsewhere, read_side_car, with_side_car_description
from openblip.jobs.files import ItemFileError, check_item_file, read_text, write_item_file, write_text
from openblip.jobs.items import Item
from openblip.jobs.records import Row
from openblip.jobs.sinks.base import SinkOptions, TextSink
from openblip.preprocess.formats import is_image_name, unread_kind

# Suffixes of files that other programs own and that a text would destroy. Image suffixes are excluded as well.
_FOREIGN_SUFFIXES = (
    *(
        ".json",
        ".jsonl",
        ".ndjson",
        ".csv",
        ".tsv",
        ".parquet",
        ".xml",
        ".html",
        ".htm",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
    ),
    *(
        ".tar",
        ".zip",
        ".gz",
        ".npy",
        ".npz",
        ".pkl",
        ".safetensors",
        ".pt",
        ".pth",
        ".py",
        ".db",
        ".wav",
        ".mp3",
        ".thm",
    ),
    *(".pp3", ".dop", ".cos", ".cot", ".arp", ".on1", ".aae", ".vrd", ".nksc", ".acr"),  # settings of RAW developers
)
_BOM = "\ufeff"


class SidecarSink(TextSink):
    """One file per image: `photo.txt` for `photo.jpg`, with a line break at the end; `photo.xmp` is written as XMP.

    In an XMP file, only `dc:description` and `AltTextAccessibility` change. A description inside the image, or in
    another XMP file next to it, counts as existing there.
    """

    name = "sidecar"

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(options)
        ext = options.ext
        if not ext.startswith(".") or "/" in ext or len(ext) < 2:
            raise InputError(f"--ext must be a suffix such as .txt, got {ext!r}")
        if is_image_name(f"image{ext}") or unread_kind(f"image{ext}"):
            raise InputError(f"--ext must not be an image suffix, got {ext}: texts would overwrite images")
        if ext.lower().endswith(_FOREIGN_SUFFIXES):
            raise InputError(f"--ext must be a suffix of text files or .xmp, got {ext}: other programs own such files")

    @property
    def base(self) -> str:
        """The folder of the sidecars, or the folder that all images share."""
        return self.options.out or self.options.home

    def target(self, item: Item) -> str:
        """Return the location an item is written to."""
        if self.options.out is None:
            if item.file is None:
                raise InputError("the image must be a file: use --out FOLDER to write the texts to a folder")
            return self._name(item.file)
        inside = item.inner_path.replace("\\", "/")
        if inside.startswith("/") or ".." in inside.split("/"):
            raise InputError(f"the text would be written outside {self.options.out}")
        return os.path.join(self.options.out, self._name(inside))  # noqa: PTH118

    def describe_conflict(self, item: Item, peer: str) -> str:
        """Return the reason why an item fails that shares its file with the item named `peer`."""
        remedy = "write a list (--to jsonl)" if self.options.naming == "full" else "use full names (--name full)"
        return f"it and {peer} would both be written to {self.target(item)}: rename one, or {remedy}"

    def check(self, item: Item) -> None:
        """Check that the file of an item can be written."""
        check_item_file(self.target(item))

    def read(self, item: Item) -> str | None:
        """Return the stored content of an item."""
        path = self.target(item)
        if not _is_xmp(path):
            return _read_plain(path)
        text = read_side_car(path)
        if text is None and item.file is not None and self.options.out is None:
            text = described_elsewhere(item.file, besides=path)
        return text

    def merge(self, item: Item, previous: str | None, records: Sequence[Row]) -> str | None:
        """Return the content to store for an item."""
        content = super().merge(item, previous, records)
        if content is previous or content is None or _is_xmp(self.target(item)):
            return content
        return self.format_text(content)

    def join(self, previous: str | None, texts: Sequence[str]) -> str:
        """Return `texts` joined with the previous text; a byte order mark stays at the start."""
        mark = _BOM if previous is not None and previous.startswith(_BOM) else ""
        return mark + super().join(previous.removeprefix(_BOM) if previous else previous, texts)

    def format_text(self, text: str) -> str:
        """Return a text in its stored form."""
        return text if self.options.ext.lower() == ".xmp" else text + "\n"

    def write(self, item: Item, content: str) -> None:
        """Store the content of an item."""
        path = self.target(item)
        if _is_xmp(path):
            replace_alt = self.options.existing == "overwrite"
            write_item_file(path, with_side_car_description(path, content, replace_alt=replace_alt))
        else:
            write_text(path, content)

    def write_edit(self, path: str, key: str, old: str, new: str) -> bool:
        """Replace a stored text that was edited."""
        content = read_side_car(path) if _is_xmp(path) else read_text(path)
        edited = self.apply_edit(content, old, new)
        if edited is not None and edited != content:
            if _is_xmp(path):
                write_item_file(path, with_side_car_description(path, edited.strip(), replace_alt=False))
            else:
                write_text(path, edited)
        return edited is not None

    def _name(self, image: str) -> str:
        """Return the path of an image with the suffix of its text."""
        stem = image if self.options.naming == "full" else os.path.splitext(image)[0]  # noqa: PTH122
        return stem + self.options.ext


def _is_xmp(path: str) -> bool:
    return path.lower().endswith(".xmp")


def _read_plain(path: str) -> str | None:
    """Return the content of a text file, or `None` if it does not exist.

    Raises:
        ItemFileError: If the file cannot be read, or does not hold plain text, which would be destroyed.
    """
    text = read_text(path)
    if text is None:
        return None
    start = text.removeprefix(_BOM).lstrip()
    if "\0" in text:
        raise ItemFileError(f"cannot write {path}: it is not a text in UTF-8; file not modified")
    if start.startswith(("<?xml", "<x:xmpmeta", "<rdf:RDF", "<!DOCTYPE", "<html")):
        raise ItemFileError(f"cannot write {path}: it holds XML, not a plain text; file not modified")
    if start.startswith(("{", "[")) and not path.lower().endswith((".txt", ".caption")):
        try:
            json.loads(start)
        except (ValueError, RecursionError):
            return text
        raise ItemFileError(f"cannot write {path}: it holds JSON, not a plain text; file not modified")
    return text
