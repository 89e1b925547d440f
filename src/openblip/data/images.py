"""References to images: small, picklable, and opened on demand (no torch)."""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from openblip.data.files import is_local, join, read_bytes
from openblip.errors import ImageError, InputError
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from PIL import Image

    from openblip.preprocess.image import ImageSource

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".heif"}
)


class ImageRef(Protocol):
    """Where a picture is. Small, picklable, and opened by whoever needs the pixels."""

    @property
    def address(self) -> str:
        """What a person needs to find it; equal for the same picture."""

    def read(self) -> ImageSource:
        """What :func:`openblip.preprocess.image.load_image` takes; raises ``OSError`` or ``ImageError``."""


def open_image(picture: ImageRef) -> Image.Image:
    """The picture, upright RGB; raises :class:`ImageError`, whatever is wrong with it."""
    try:
        source = picture.read()
    except OSError as error:
        raise ImageError(f"cannot read {picture.address}: {error.strerror or error}") from error
    return load_image(source)


@dataclass(frozen=True)
class FileImage:
    """A picture in a file of its own: a path, an ``https`` address, or any address that fsspec knows."""

    path: str

    @property
    def address(self) -> str:
        return self.path

    def read(self) -> ImageSource:
        by_path = is_local(self.path) or self.path.startswith(("https://", "http://"))
        return self.path if by_path else read_bytes(self.path)


@dataclass(frozen=True)
class SpanImage:
    """A picture that lies uncompressed inside a larger local file, as a member of a tar does."""

    path: str
    member: str
    offset: int
    size: int

    @property
    def address(self) -> str:
        return f"{self.path}:{self.member}"

    def read(self) -> ImageSource:
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class MemberImage:
    """A member of a local tar that is known by name only, as results of a job call the pictures of a tar."""

    path: str
    member: str

    @property
    def address(self) -> str:
        return f"{self.path}:{self.member}"

    def read(self) -> ImageSource:
        changed = Path(self.path).stat().st_mtime_ns
        span = _spans(self.path, changed).get(self.member)
        if span is None:
            raise ImageError(f"cannot read {self.address}: {self.path} has no such member")
        return SpanImage(self.path, self.member, *span).read()


@functools.lru_cache(maxsize=64)
def _spans(path: str, changed: int) -> dict[str, tuple[int, int]]:
    """Where the members of a tar lie: offset and size by name, up to where it is damaged.

    ``changed``, its time, parts it from what it was.
    """
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isreg():
                    found[info.name] = (info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        if not found:
            raise ImageError(f"cannot read {path}: the tar is damaged or cut short ({error})") from error
    return found


@dataclass(frozen=True)
class MemoryImage:
    """A picture that is in memory already: encoded bytes, a PIL image, an array."""

    value: ImageSource
    address: str

    def read(self) -> ImageSource:
        return self.value


class Locator:
    """Makes a picture of what a row has in its place: a path or an address (below ``root`` if it is relative), a member
    of a tar (``shard.tar:in/a.jpg``), encoded bytes, a PIL image, an array, or the hub's ``{"bytes", "path"}``."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def __call__(self, ref: Any, address: str) -> ImageRef:
        """The picture of the record at ``address``; ``InputError`` if ``ref`` is none of these."""
        if isinstance(ref, Mapping):
            ref = ref.get("bytes") or ref.get("path")
        if isinstance(ref, os.PathLike):
            ref = os.fspath(ref)
        if isinstance(ref, str) and ref and "\0" not in ref:
            return _named(join(self.root, ref))
        if isinstance(ref, (bytes, bytearray)) or hasattr(ref, "convert") or hasattr(ref, "__array_interface__"):
            return MemoryImage(ref, f"{address}/image")
        raise InputError(f"a picture is named by a path or an address, not {ref!r}")


_MEMBER = re.compile(r"(.+\.(?:tar|tar\.gz|tgz|tar\.bz2|tar\.xz|tar\.zst)):(.+)", re.IGNORECASE | re.DOTALL)


def _named(path: str) -> ImageRef:
    """The picture in a file of its own, or in the tar before the colon."""
    found = _MEMBER.fullmatch(path) if ":" in path else None
    if found is None or (is_local(path) and os.path.lexists(path)):
        return FileImage(path)
    tar, member = found.groups()
    if not is_local(tar) or not tar.lower().endswith(".tar"):
        raise InputError(f"{path} lies in a compressed or remote tar, which can only be read whole: unpack it")
    return MemberImage(tar, member)
