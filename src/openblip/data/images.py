"""References to images: small, picklable, and opened on demand (no torch)."""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from openblip.data.files import is_local, join, read_bytes
from openblip.errors import ImageError, InputError
from openblip.preprocess.files import same_name
from openblip.preprocess.formats import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from PIL import Image

    from openblip.preprocess.image import ImageSource


class ImageRef(Protocol):
    """A reference to an image."""

    @property
    def address(self) -> str:
        """Where a person finds the image; equal for the same image."""

    def read(self) -> ImageSource:
        """Return a value for `load_image`; raises `OSError` or `ImageError`."""


def open_image(ref: ImageRef) -> Image.Image:
    """Open an image.

    Args:
        ref: Reference to the image.

    Returns:
        The image, upright and in RGB.

    Raises:
        ImageError: If the image cannot be read or decoded.
    """
    try:
        source = ref.read()
    except OSError as error:
        raise ImageError(f"cannot read {ref.address}: {error.strerror or error}") from error
    return load_image(source)


@dataclass(frozen=True)
class FileImage:
    """An image in its own file: a path, an `https` address, or any address that fsspec supports."""

    path: str

    @property
    def address(self) -> str:
        """Where a person finds the image."""
        return self.path

    def read(self) -> ImageSource:
        """Return the path, or the content of a remote file."""
        by_path = is_local(self.path) or self.path.startswith(("https://", "http://"))
        return self.path if by_path else read_bytes(self.path)


@dataclass(frozen=True)
class SpanImage:
    """An image stored uncompressed inside a larger local file, such as a member of an indexed tar."""

    path: str
    member: str
    offset: int
    size: int

    @property
    def address(self) -> str:
        """Where a person finds the image."""
        return f"{self.path}:{self.member}"

    def read(self) -> ImageSource:
        """Return the image's bytes."""
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class MemberImage:
    """A member of a local tar, known by name only. Job results name the images of a tar this way."""

    path: str
    member: str

    @property
    def address(self) -> str:
        """Where a person finds the image."""
        return f"{self.path}:{self.member}"

    def read(self) -> ImageSource:
        """Return the member's bytes."""
        span = _member_spans(self.path, Path(self.path).stat().st_mtime_ns).get(self.member)
        if span is None:
            raise ImageError(f"cannot read {self.address}: {self.path} has no such member")
        return SpanImage(self.path, self.member, *span).read()


@functools.lru_cache(maxsize=64)
def _member_spans(path: str, modified: int) -> dict[str, tuple[int, int]]:
    """Return offset and size of each member of a tar, up to the first damage.

    `modified`, the time of the last change, keeps an old index from being used for a changed file.
    """
    spans: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isreg():
                    spans[info.name] = (info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        if not spans:
            raise ImageError(f"cannot read {path}: the tar is damaged or cut short ({error})") from error
    return spans


@dataclass(frozen=True)
class MemoryImage:
    """An image in memory: encoded bytes, a PIL image or an array."""

    value: ImageSource
    address: str

    def read(self) -> ImageSource:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class LazyFile:
    """A file object that reads an image when the model needs it."""

    ref: ImageRef

    @property
    def name(self) -> str:
        """The address of the image, for errors."""
        return self.ref.address

    def seekable(self) -> bool:
        """Return False: the image is read once."""
        return False

    def read(self) -> ImageSource:
        """Return the bytes of the image; raises `OSError` or `ImageError`."""
        return self.ref.read()


def image_source(ref: ImageRef) -> ImageSource:
    """Return an image in a form that a model accepts, without opening it.

    Args:
        ref: Reference to the image.

    Returns:
        A path or address, an image that is in memory anyway, or a file object that is read later.
    """
    if isinstance(ref, MemoryImage):
        return ref.value
    if isinstance(ref, FileImage) and (is_local(ref.path) or ref.path.startswith(("https://", "http://"))):
        return ref.path
    return cast("ImageSource", LazyFile(ref))


class Locator:
    """Makes image references of the values in a row.

    A value is a path or an address, a member of a tar (`shard.tar:in/a.jpg`), encoded bytes, a PIL image, an array,
    or the hub's `{"bytes", "path"}`. Relative paths are resolved against `root`. An absolute path of another machine,
    and a path with backslashes or a drive letter, stands for the file below `root` with the most equal folders. A name
    stands for the file that differs from it only in the Unicode form of its accents, as macOS stores it.

    Args:
        root: Folder or address for relative paths.
        search: Look below `root` also for relative paths that do not exist there.
    """

    def __init__(self, root: str = "", *, search: bool = False) -> None:
        self.root = root
        self._search = search
        self._folders: dict[str, str] = {}  # of other machines: the folder here

    def __call__(self, value: Any, address: str) -> ImageRef:
        """Return the reference for a value of the record at `address`; raises `InputError` for any other value."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str) and value and "\0" not in value:
            return _ref_by_name(self._find(value))
        if isinstance(value, (bytes, bytearray)) or hasattr(value, "convert") or hasattr(value, "__array_interface__"):
            return MemoryImage(value, f"{address}/image")
        raise InputError(f"an image must be given as a path, an address, bytes or an image, got {value!r}")

    def _find(self, name: str) -> str:
        """Return the path of an image that a list names.

        Raises:
            InputError: Files of two folders of another machine would be one file here.
        """
        path = join(self.root, name)
        if not name.isascii() and is_local(path) and not os.path.lexists(path):
            path = same_name(path) or path
        is_foreign = "\\" in name or _DRIVE.match(name) is not None
        if not is_local(path) or not (is_foreign or self._search or os.path.isabs(name)):  # noqa: PTH117
            return path
        if os.path.lexists(path) or _MEMBER.fullmatch(path):
            return path
        steps = _DRIVE.sub("", name.removeprefix("file://").replace("\\", "/")).split("/")
        folder, base = os.path.normpath("/".join(steps[:-1])), steps[-1]
        if folder in self._folders:
            return join(self._folders[folder], base)
        for start in range(len(steps)):
            candidate = join(self.root, "/".join(steps[start:]).lstrip("/"))
            if os.path.lexists(candidate):
                found = os.path.dirname(candidate)  # noqa: PTH120
                if found in self._folders.values():
                    raise InputError(f"{name} could be {candidate}, but files of another folder are there already")
                self._folders[folder] = found
                return candidate
        return path


_DRIVE = re.compile(r"/?[A-Za-z]:[\\/]|\\\\")
_MEMBER = re.compile(r"(.+\.(?:tar|tar\.gz|tgz|tar\.bz2|tar\.xz|tar\.zst)):(.+)", re.IGNORECASE | re.DOTALL)


def _ref_by_name(path: str) -> ImageRef:
    """Return a reference to an image file, or to a member of the tar before the colon."""
    match = _MEMBER.fullmatch(path) if ":" in path else None
    if match is None or (is_local(path) and os.path.lexists(path)):
        return FileImage(path)
    tar, member = match.groups()
    if not is_local(tar) or not tar.lower().endswith(".tar"):
        raise InputError(f"members can only be read from a local, uncompressed tar, got {path}; unpack the tar")
    return MemberImage(tar, member)
