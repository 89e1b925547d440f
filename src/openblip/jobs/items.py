"""The pictures of a job, in a fixed order, each under a name that stays the same from run to run."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeAlias

from PIL import Image

from openblip.data.files import is_local
from openblip.data.images import FileImage, ImageRef, MemoryImage
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.sources.base import Stream
from openblip.data.sources.hub import PREFIX
from openblip.data.sources.images import RootedSource, glob_root
from openblip.errors import ImageError, InputError
from openblip.preprocess.image import MAX_PIXELS
from openblip.preprocess.web import download


@dataclass(frozen=True, eq=False)
class Item:
    """One picture, or one pair of them, to work on.

    ``name`` is what the user called it and ``key`` what the output calls it (:func:`keyed`). ``inside`` is its path
    below the folder, glob or tar it came from, for trees of side-cars. ``asked`` is what a list asks of this picture
    alone, its prompt or a statement, as fields of the record.
    """

    key: str
    name: str
    index: int
    pictures: tuple[ImageRef, ...]
    inside: str
    asked: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str | None:
        """The picture's own file on this machine, if it has one."""
        first = self.pictures[0]
        alone = len(self.pictures) == 1 and isinstance(first, FileImage) and is_local(first.path)
        return first.path if alone and isinstance(first, FileImage) else None

    def path(self, base: str | None) -> str | list[str]:
        """What a record in the folder ``base`` calls it: :func:`place` of the picture, or of both of a pair."""
        places = [place(picture.address, base) for picture in self.pictures]
        return places[0] if len(places) == 1 else places

    def signature(self) -> str:
        """Equal as long as the picture is unchanged: size and time of its file, or a hash of what is in memory.

        Empty if that cannot be told, as of a picture on the web.
        """
        found = [_signature(picture) for picture in self.pictures]
        return " ".join(found) if all(found) else ""

    def source(self, frame: int = 0) -> Any:
        """What :class:`~openblip.blip.Blip` takes: read when it is opened, which its threads do ahead of the model."""
        return _source(self.pictures[0], frame)

    def pair(self, frame: int = 0) -> tuple[Any, Any]:
        """Both of a pair, in the same way."""
        left, right = self.pictures
        return _source(left, frame), _source(right, frame)


@dataclass(frozen=True)
class Unusable:
    """What stands in the place of an item that cannot even be tried."""

    key: str
    name: str
    index: int
    reason: str


Asked: TypeAlias = Callable[[Record], Iterable[Mapping[str, str]]]


def nothing_more(record: Record) -> Iterable[Mapping[str, str]]:
    """Every picture is one item, of which the command asks what it asks of all."""
    return ({},)


def gather(
    parts: Iterable[RootedSource | Problem],
    *,
    base: str | None = None,
    asked: Asked = nothing_more,
    pairs: bool = False,
) -> Iterator[Item | Unusable]:
    """The items of what :func:`~openblip.data.sources.images.open_images` found, single pictures or ``pairs``.

    ``base`` is the folder that keys are told from. ``asked`` says what a record asks of its picture: each is an item.
    What comes again is passed over.
    """
    seen: set[str] = set()
    index = 0
    for part in parts:
        root = part.root if isinstance(part, RootedSource) else None
        for record in _records(part):
            for found in _items(record, root, base, asked, 2 if pairs else 1):
                if isinstance(found, Item):
                    if found.key in seen:
                        continue
                    seen.add(found.key)
                yield replace(found, index=index)
                index += 1


def streamed(parts: Iterable[RootedSource | Problem]) -> bool:
    """Whether the pictures of one of these can only be had one after another."""
    return any(isinstance(part, RootedSource) and isinstance(part.source, Stream) for part in parts)


def home(paths: Iterable[str]) -> str:
    """The folder that what ``paths`` name has in common: that of the output of jobs that write beside pictures."""
    folders = []
    for path in paths:
        if is_local(path) and not path.startswith(PREFIX):
            whole = os.path.abspath(glob_root(path))  # noqa: PTH100
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


def keyed(path: str | Sequence[str], asked: Mapping[str, Any]) -> str:
    """The key of an item: its path, those of a pair side by side, and what is asked of it."""
    return ": ".join([path if isinstance(path, str) else " | ".join(path), *map(str, asked.values())])


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


def _records(part: RootedSource | Problem) -> Iterator[Record | Problem]:
    if isinstance(part, Problem):
        yield part
    elif isinstance(part.source, Stream):
        for shard in range(part.source.shards):
            yield from part.source.read(shard)
    else:
        yield from part.source.problems
        yield from part.source


def _items(
    record: Record | Problem, root: str | None, base: str | None, asked: Asked, count: int
) -> Iterator[Item | Unusable]:
    if isinstance(record, Problem):
        name = readable(record.address)
        yield Unusable(name, name, 0, record.reason.removeprefix(f"{record.address}: "))
        return
    addresses = [picture.address for picture in record.images]
    names = [readable(address) for address in addresses]
    name = " | ".join(names)
    if len(names) != count:
        reason = "it is one picture, not a pair" if count == 2 else f"it is {len(names)} pictures, not one"
        yield Unusable(name, name, 0, reason)
    elif names != addresses:
        yield Unusable(name, name, 0, "its name is not UTF-8: rename it")
    elif not (asks := list(asked(record))):
        yield Unusable(name, name, 0, "the list asks nothing of it")
    else:
        places, inside = [place(address, base) for address in addresses], _inside(record.images[0], root)
        yield from (Item(keyed(places, one), name, 0, record.images, inside, one) for one in asks)


def _signature(picture: ImageRef) -> str:
    path = getattr(picture, "path", None)
    if isinstance(path, str) and is_local(path):
        return stamp(path)
    if isinstance(picture, MemoryImage) and isinstance(picture.value, (bytes, bytearray)):
        return blake2b(picture.value, digest_size=12).hexdigest()
    return ""


def _source(picture: ImageRef, frame: int) -> Any:
    if not frame and isinstance(picture, MemoryImage):
        return picture.value
    path = getattr(picture, "path", "")
    if not frame and isinstance(picture, FileImage) and (is_local(path) or path.startswith("http")):
        return path
    return _Later(picture, frame)


def _inside(picture: ImageRef, root: str | None) -> str:
    """The picture's path below ``root``; its bare name if it lies elsewhere."""
    if not isinstance(picture, FileImage):
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

    picture: ImageRef
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
