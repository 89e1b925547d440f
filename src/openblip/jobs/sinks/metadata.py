"""Descriptions inside the image files, where photo libraries and screen readers look for them."""

from __future__ import annotations

import mmap
import os

from openblip.errors import ImageError, InputError
from openblip.jobs.descriptions import described_elsewhere, find_description
from openblip.jobs.files import check_item_file, write_item_file
from openblip.jobs.items import Item
from openblip.jobs.packets import detect_format
from openblip.jobs.sinks.base import SinkOptions, TextSink
from openblip.jobs.xmp import read_description, with_description


class MetadataSink(TextSink):
    """XMP `dc:description` and `AltTextAccessibility` of JPEG, PNG and WebP files.

    A description in any other form (EXIF, IPTC, a text of a PNG, an XMP file next to the image) counts as existing. The
    compressed image data, all other metadata, and the owner, the permissions, the extended attributes and the times of
    the file stay unchanged; a file that could not keep them is not written.
    """

    name = "metadata"
    writes_images = True

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(options)
        if options.out is not None:
            raise InputError("--to metadata writes into the images and cannot be combined with --out")
        self._prepared: dict[str, tuple[str, bytes]] = {}  # by path: text, and the file with that text

    @property
    def base(self) -> str:
        """The folder that all images share."""
        return self.options.home

    def target(self, item: Item) -> str:
        """Return the location an item is written to."""
        if item.file is None:
            raise InputError("the image must be a file to store a description")
        return os.path.realpath(item.file)

    def check(self, item: Item) -> None:
        """Check that the description can be written into the image."""
        path = self.target(item)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                start = file.read(64)
        except OSError:
            return  # opening the image reports it
        if start:
            detect_format(start)
            check_item_file(path)

    def read(self, item: Item) -> str | None:
        """Return the stored content of an item."""
        path = self.target(item)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                if not os.fstat(file.fileno()).st_size:
                    return None
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                    text = find_description(view)
        except (OSError, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            return None  # the file cannot be read; opening the image reports it
        return text if text is not None else described_elsewhere(str(item.file))

    def signature_after(self, item: Item, content: str) -> str:
        """Return the image's signature after `content` is written into it."""
        path = self.target(item)
        data = self._with_text(path, content)
        self._prepared[path] = (content, data)
        return f"{len(data)}:{os.stat(path).st_mtime_ns}"  # noqa: PTH116

    def write(self, item: Item, content: str) -> None:
        """Store the content of an item."""
        path = self.target(item)
        text, data = self._prepared.pop(path, (None, b""))
        if text != content:
            data = self._with_text(path, content)
        _replace_image(path, data)

    def write_edit(self, path: str, key: str, old: str, new: str) -> bool:
        """Replace a stored text that was edited."""
        data = _read_image(path)
        content = read_description(data)
        edited = self.apply_edit(content, old, new)
        if edited is not None and edited != content:
            _replace_image(path, with_description(data, edited, replace_alt=False))
        return edited is not None

    def _with_text(self, path: str, text: str) -> bytes:
        replace_alt = self.options.existing == "overwrite"
        return with_description(_read_image(path), text, replace_alt=replace_alt)


def _read_image(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error


def _replace_image(path: str, data: bytes) -> None:
    status = os.stat(path)  # noqa: PTH116
    write_item_file(path, data, sync=True, times_ns=(status.st_atime_ns, status.st_mtime_ns))
