"""The pictures of a job, in a fixed order, each under a name that stays the same from run to run."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from PIL import Image

from openblip.data.records import FilePicture, HeldPicture, Picture, Problem, Record, is_local
from openblip.data.sources.hub import PREFIX
from openblip.data.sources.pictures import Part, fixed
from openblip.data.tables import Stream
from openblip.errors import ImageError, InputError
from openblip.preprocess.image import MAX_PIXELS
from openblip.preprocess.web import download


@dataclass(frozen=True, eq=False)
class Item:
    """One picture to work on.

    ``name`` is what the user called it and ``key`` what the output calls it (:func:`place`). ``inside`` is its path
    below the folder, glob or tar it came from, for trees of side-cars. ``extra`` holds the columns that were kept.
    """

    key: str
    name: str
    index: int
    picture: Picture
    inside: str
    record: Record = field(repr=False)

    @property
    def file(self) -> str | None:
        """The picture's own file on this machine, if it has one."""
        return self.picture.path if isinstance(self.picture, FilePicture) and is_local(self.picture.path) else None

    def signature(self) -> str:
        """Equal as long as the picture is unchanged: size and time of its file, or a hash of what is in memory.

        Empty if that cannot be told, as of a picture on the web.
        """
        path = getattr(self.picture, "path", None)
        if isinstance(path, str) and is_local(path):
            return stamp(path)
        if isinstance(self.picture, HeldPicture) and isinstance(self.picture.value, (bytes, bytearray)):
            return blake2b(self.picture.value, digest_size=12).hexdigest()
        return ""

    def source(self, frame: int = 0) -> Any:
        """What :class:`~openblip.blip.Blip` takes: read when it is opened, which its threads do ahead of the model."""
        if not frame and isinstance(self.picture, HeldPicture):
            return self.picture.value
        path = getattr(self.picture, "path", "")
        if not frame and isinstance(self.picture, FilePicture) and (is_local(path) or path.startswith("http")):
            return path
        return _Later(self.picture, frame)


@dataclass(frozen=True)
class Unusable:
    """What stands in the place of an item that cannot even be tried."""

    key: str
    name: str
    index: int
    reason: str


def gather(
    parts: Iterable[Part | Problem], *, base: str | None = None, apart: Sequence[str] = ()
) -> Iterator[Item | Unusable]:
    """The items of what :func:`~openblip.data.sources.pictures.open_pictures` found.

    ``base`` is the folder that keys are told from. A picture that comes again is passed over, unless it differs in one
    of the columns ``apart``, such as its prompt: then its key gets a number.
    """
    seen: dict[str, list[tuple[Any, ...]]] = {}
    index = 0
    for part in parts:
        root = part.root if isinstance(part, Part) else None
        for record in _records(part):
            found = _item(record, root, base, index)
            if isinstance(found, Item):
                sort = tuple(record.extra.get(name) for name in apart) if isinstance(record, Record) else ()
                others = seen.setdefault(found.key, [])
                if sort in others:
                    continue
                others.append(sort)
                if len(others) > 1:
                    found = replace(found, key=f"{found.key} #{len(others)}")
            yield found
            index += 1


def streamed(parts: Iterable[Part | Problem]) -> bool:
    """Whether the pictures of one of these can only be had one after another."""
    return any(isinstance(part, Part) and isinstance(part.source, Stream) for part in parts)


def home(paths: Iterable[str]) -> str:
    """The folder that what ``paths`` name has in common: that of the output of jobs that write beside pictures."""
    folders = []
    for path in paths:
        if is_local(path) and not path.startswith(PREFIX):
            whole = os.path.abspath(fixed(path))  # noqa: PTH100
            folders.append(whole if os.path.isdir(whole) else os.path.dirname(whole))  # noqa: PTH112, PTH120
    shared = os.path.commonpath(folders) if folders else os.getcwd()  # noqa: PTH109
    return shared if os.access(shared, os.W_OK) and os.path.dirname(shared) != shared else folders[0]  # noqa: PTH120


def place(address: str, base: str | None) -> str:
    """What an output in the folder ``base`` calls a picture: its path from there if it lies below, else the whole path.

    Without a base, and for what is not on this machine, it is the address itself.
    """
    if base is None or not is_local(address):
        return address
    whole, home = os.path.abspath(address), os.path.abspath(base)  # noqa: PTH100 (links stay what they are)
    below = whole.startswith(home.rstrip(os.sep) + os.sep)
    return os.path.relpath(whole, home).replace(os.sep, "/") if below else whole


def stamp(path: str) -> str:
    """Size and time of a file as one word; empty if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a hundred thousand of them)
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"


def readable(name: str) -> str:
    """A file name as text that any terminal and any file can take; bytes that are no UTF-8 come out as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if _surrogates(name) else name


def _surrogates(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _records(part: Part | Problem) -> Iterator[Record | Problem]:
    if isinstance(part, Problem):
        yield part
    elif isinstance(part.source, Stream):
        for shard in range(part.source.shards):
            yield from part.source.read(shard)
    else:
        yield from part.source.problems
        yield from part.source


def _item(record: Record | Problem, root: str | None, base: str | None, index: int) -> Item | Unusable:
    if isinstance(record, Problem):
        name = readable(record.address)
        return Unusable(name, name, index, record.reason.removeprefix(f"{record.address}: "))
    address = record.pictures[0].address
    name = readable(address)
    if len(record.pictures) != 1:
        return Unusable(record.address, record.address, index, "it is a pair of pictures, not one")
    if name != address:
        return Unusable(name, name, index, "its name is not UTF-8: rename it")
    return Item(place(address, base), name, index, record.pictures[0], _inside(record.pictures[0], root), record)


def _inside(picture: Picture, root: str | None) -> str:
    """The picture's path below ``root``; its bare name if it lies elsewhere."""
    if not isinstance(picture, FilePicture):
        path = getattr(picture, "path", None)
        member = picture.address.removeprefix(f"{path}:") if path else picture.address.rpartition(":")[2]
        return member.replace(" ", "_") if member.startswith("row ") else member
    path = picture.path
    if root and is_local(path):
        home = root.rstrip("/") + "/"
        if path.startswith(home):
            return path.removeprefix(home)
    return os.path.basename(path.partition("?")[0])  # noqa: PTH119


@dataclass(frozen=True)
class _Later:
    """A picture as the file object that :func:`~openblip.preprocess.image.load_image` reads, once it is its turn."""

    picture: Picture
    frame: int = 0

    @property
    def name(self) -> str:
        return self.picture.address

    def seekable(self) -> bool:
        return False

    def read(self) -> bytes:
        value = self.picture.read()
        if hasattr(value, "read"):
            value = value.read()
        if isinstance(value, (str, os.PathLike)):
            path = os.fspath(value)
            value = _file(path) if is_local(path) else download(path)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _frame(bytes(value), self.frame, self.name) if self.frame else bytes(value)
        raise InputError(f"{self.name} is no picture file, but {type(value).__name__}")


def _file(path: str) -> bytes:
    if not os.path.isfile(path):  # noqa: PTH113
        raise ImageError(f"cannot read {path}: no such file, or no regular one")
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _frame(data: bytes, number: int, name: str) -> bytes:
    """One frame of an animation or page of a file as a picture file of its own, its pixels as they were."""
    with Image.open(io.BytesIO(data)) as image:
        count = getattr(image, "n_frames", 1)
        if count == 1:
            return data
        if number >= count:
            raise ImageError(f"cannot read {name}: it has {count} frames, none of number {number}")
        if image.width * image.height > MAX_PIXELS:
            return data  # refused where pictures are opened
        image.seek(number)
        image.load()
        out = io.BytesIO()
        plain = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        image.copy().save(out, "PNG" if plain else "TIFF", exif=image.getexif())
        return out.getvalue()
