"""The items of a job: images, or pairs of images, in a fixed order and with keys that are equal in every run."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from openblip.data.files import is_local
from openblip.data.images import IMAGE_SUFFIXES, FileImage, ImageRef, MemoryImage
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import Columns
from openblip.data.skips import PathFilter, Skips
from openblip.data.sources import open_source
from openblip.data.sources.addresses import HUB_PREFIX
from openblip.data.sources.base import Stream
from openblip.data.sources.images import RootedSource, glob_root, open_images, path_kind
from openblip.errors import ImageError, InputError
from openblip.preprocess.files import check_limits, identify, wrap_errors
from openblip.preprocess.web import download

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

Fields: TypeAlias = Mapping[str, str]
FieldsOf: TypeAlias = Callable[[Record], Iterable[Fields]]


@dataclass(frozen=True, eq=False)
class Item:
    """One image, or one pair of images, to compute results for.

    Attributes:
        key: Name of the item in the output and the journal.
        name: Name to show to the user.
        index: Position in the input, from 0.
        images: The image, or the two images of a pair.
        inner_path: Path below the folder, glob or tar that the image came from; trees of sidecars mirror it.
        fields: Fields of the record that a list sets for this item alone, such as its prompt or its statement.
    """

    key: str
    name: str
    index: int
    images: tuple[ImageRef, ...]
    inner_path: str
    fields: Fields = field(default_factory=dict)

    @property
    def file(self) -> str | None:
        """The path of the image's own file on this machine, if it has one."""
        image = self.images[0]
        if len(self.images) == 1 and isinstance(image, FileImage) and is_local(image.path):
            return image.path
        return None

    def paths_from(self, base: str | None) -> str | list[str]:
        """Return the path that a record in the folder `base` stores: one path, or two for a pair."""
        paths = [path_from(image.address, base) for image in self.images]
        return paths[0] if len(paths) == 1 else paths

    def signature(self) -> str:
        """Return a text that changes when an image changes, or "" if changes cannot be detected (images on the web).

        It contains the size and time of a file, or a hash of an image in memory.
        """
        signatures: list[str] = []
        for image in self.images:
            path = getattr(image, "path", None)
            if isinstance(path, str) and is_local(path):
                signatures.append(file_stamp(path))
            elif isinstance(image, MemoryImage) and isinstance(image.value, (bytes, bytearray)):
                signatures.append(blake2b(image.value, digest_size=12).hexdigest())
            else:
                return ""
        return " ".join(signatures) if all(signatures) else ""

    def source(self, frame: int = 0, index: int = 0) -> ImageSource:
        """Return an image in a form that [`Blip`][openblip.Blip] accepts. The file is opened when the model needs it.

        Args:
            frame: Frame of an animation.
            index: 1 for the second image of a pair.
        """
        image = self.images[index]
        if frame == 0 and isinstance(image, MemoryImage):
            return image.value
        if frame == 0 and isinstance(image, FileImage) and ("://" not in image.path or image.path.startswith("http")):
            return image.path
        return cast("ImageSource", DeferredImage(image, frame))


@dataclass(frozen=True)
class UnusableItem:
    """An entry of the input that is not a usable image, and the reason."""

    key: str
    name: str
    index: int
    reason: str


@dataclass(frozen=True)
class ListFormat:
    """How lists of images are read.

    Attributes:
        images_folder: Folder to resolve relative paths against.
        mapping: The column of a field, where it differs from the schema.
        columns: Extra columns that `fields_of` reads.
        fields_of: Function that returns the fields of each item in a record. By default, a record is one item without
            fields.
    """

    images_folder: str | None = None
    mapping: Columns | None = None
    columns: Sequence[str] = ()
    fields_of: FieldsOf | None = None


def open_items(
    paths: Sequence[str],
    *,
    recursive: bool = False,
    base: str | None = None,
    pairs: bool = False,
    lists: ListFormat | None = None,
    chosen: PathFilter | None = None,
    skips: Skips | None = None,
) -> Sequence[Item | UnusableItem] | Iterator[Item | UnusableItem]:
    """Return the items that `paths` name, each once.

    Args:
        paths: Images, folders, globs, tars, lists and addresses, as
            [`open_images`][openblip.data.sources.images.open_images] takes them. With `pairs`, two images or lists of
            pairs.
        recursive: Also search subfolders.
        base: Folder of the output, which item keys are relative to.
        pairs: Items are pairs of images.
        lists: How lists are read.
        chosen: Patterns that the paths of images must fit.
        skips: Counts the files that are passed over.

    Returns:
        A sequence, or an iterator if one of the sources is a stream.

    Raises:
        InputError: `pairs` is true and the paths name image files, but not two.
    """
    lists, chosen, skips = lists or ListFormat(), chosen or PathFilter(), skips if skips is not None else Skips()
    is_filtered = bool(chosen.include or chosen.exclude)
    if (
        not pairs
        and not is_filtered
        and all(
            os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
            and os.path.isfile(path)  # noqa: PTH113
            and (path.isascii() or path == printable(path))
            for path in paths
        )
    ):
        files: dict[str, Item] = {}
        for path in paths:
            key = path if base is None else path_from(path, base)
            if key in files:
                skips.add("repeated image")
            files.setdefault(key, Item(key, path, len(files), (FileImage(path),), os.path.basename(path)))  # noqa: PTH119
        return list(files.values())
    if pairs and "image" in (kinds := [path_kind(path) for path in paths]):
        if kinds != ["image", "image"]:
            raise InputError(f"expected two images, or lists of pairs, got {', '.join(paths)}")
        sources: list[RootedSource | Problem] = [RootedSource(open_source([{"image": list(paths)}]), None)]
    else:
        sources = list(
            open_images(
                paths,
                recursive=recursive,
                images=lists.images_folder,
                columns=lists.mapping,
                keep=lists.columns,
                chosen=chosen,
                skips=skips,
            )
        )
    items = _iter_items(sources, base, lists.fields_of, 2 if pairs else 1, chosen, skips)
    streams = any(isinstance(rooted, RootedSource) and isinstance(rooted.source, Stream) for rooted in sources)
    return items if streams else list(items)


def common_folder(paths: Iterable[str]) -> str:
    """Return the folder that all local `paths` share, for the journal of formats that write next to images."""
    folders = []
    for path in paths:
        if is_local(path) and not path.startswith(HUB_PREFIX):
            full_path = os.path.abspath(glob_root(path))  # noqa: PTH100
            folders.append(full_path if os.path.isdir(full_path) else os.path.dirname(full_path))  # noqa: PTH112, PTH120
    shared = os.path.commonpath(folders) if folders else os.getcwd()  # noqa: PTH109
    is_root = os.path.dirname(shared) == shared  # noqa: PTH120
    return folders[0] if folders and (is_root or not os.access(shared, os.W_OK)) else shared


def path_from(address: str, base: str | None) -> str:
    """Return the path that an output in the folder `base` stores for an image.

    It is relative to `base` for images below it, and absolute for other files on this machine. Without a base, and for
    images elsewhere, it is the address.
    """
    if base is None or not is_local(address):
        return address
    full_path, full_base = os.path.abspath(address), os.path.abspath(base)  # noqa: PTH100 (links stay as they are)
    is_below = full_path.startswith(full_base.rstrip(os.sep) + os.sep)
    return os.path.relpath(full_path, full_base).replace(os.sep, "/") if is_below else full_path


def item_key(paths: str | Sequence[str], fields: Mapping[str, Any]) -> str:
    """Return the key of an item: its path or both paths of a pair, and its fields."""
    return ": ".join([paths if isinstance(paths, str) else " | ".join(paths), *map(str, fields.values())])


def file_stamp(path: str) -> str:
    """Return size and time of a file as one word, or "" if there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a hundred thousand files)
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def printable(name: str) -> str:
    """Return a file name as text that every terminal and file can store: bytes that are not UTF-8 become `\\xff`."""
    has_raw_bytes = any("\ud800" <= letter <= "\udfff" for letter in name)
    return os.fsencode(name).decode("utf-8", "backslashreplace") if has_raw_bytes else name


def _iter_items(
    sources: Iterable[RootedSource | Problem],
    base: str | None,
    fields_of: FieldsOf | None,
    count: int,
    chosen: PathFilter,
    skips: Skips,
) -> Iterator[Item | UnusableItem]:
    """Yield the items of all sources, each key once, numbered from 0."""
    keys: set[str] = set()
    index = 0
    for rooted in sources:
        root = rooted.root if isinstance(rooted, RootedSource) else None
        for record in _iter_records(rooted):
            if isinstance(record, Problem) and record.kind:
                skips.add(record.kind, count=record.count)
                continue
            for item in _items_of(record, root, base, fields_of, count):
                if isinstance(item, Item):
                    if rejection := chosen.reject(item.inner_path):
                        skips.add(rejection)
                        continue
                    if item.key in keys:
                        skips.add("repeated image")
                        continue
                    keys.add(item.key)
                yield replace(item, index=index)
                index += 1


def items_of_records(
    records: Iterable[Record | Problem], root: str | None, base: str | None, fields_of: FieldsOf | None = None
) -> Iterator[Item | UnusableItem]:
    """Yield the items of records, each key once, numbered from 0.

    Args:
        records: Records of one source, with problems in place of unusable rows.
        root: Folder that the names of the images are relative to.
        base: Folder of the output, which item keys are relative to.
        fields_of: Function that returns the fields of each item in a record.
    """
    keys: set[str] = set()
    index = 0
    for record in records:
        for item in _items_of(record, root, base, fields_of, 1):
            if isinstance(item, Item):
                if item.key in keys:
                    continue
                keys.add(item.key)
            yield replace(item, index=index)
            index += 1


def _iter_records(rooted: RootedSource | Problem) -> Iterator[Record | Problem]:
    if isinstance(rooted, Problem):
        yield rooted
    elif isinstance(rooted.source, Stream):
        for shard in range(rooted.source.shards):
            yield from rooted.source.read(shard)
    else:
        yield from rooted.source.problems
        yield from rooted.source


def _items_of(
    record: Record | Problem, root: str | None, base: str | None, fields_of: FieldsOf | None, count: int
) -> Iterator[Item | UnusableItem]:
    """Yield the items of one record, whose index is not known yet."""
    if isinstance(record, Problem):
        name = printable(record.address)
        yield UnusableItem(name, name, 0, record.reason.removeprefix(f"{record.address}: "))
        return
    if count == 1 and len(record.images) > 1 and not isinstance(record.images[0], FileImage):
        for image in record.images:  # of a record in a tar, whose names agree up to the first dot
            yield from _items_of(replace(record, images=(image,)), root, base, fields_of, count)
        return
    addresses = [image.address for image in record.images]
    names = [printable(address) for address in addresses]
    name = " | ".join(names)
    items_fields: list[Fields] = [{}] if fields_of is None else list(fields_of(record))
    if len(names) != count:
        reason = "expected a pair of images, got one" if count == 2 else f"expected one image, got {len(names)}"
        yield UnusableItem(name, name, 0, reason)
    elif names != addresses:
        yield UnusableItem(name, name, 0, "its name is not UTF-8: rename it")
    elif not items_fields:
        yield UnusableItem(name, name, 0, "the list has no text for it")
    else:
        paths = [path_from(address, base) for address in addresses]
        inner_path = _inner_path(record.images[0], root)
        for fields in items_fields:
            yield Item(item_key(paths, fields), name, 0, record.images, inner_path, fields)


def _inner_path(image: ImageRef, root: str | None) -> str:
    """Return the image's path below `root`, or its file name if it is elsewhere."""
    if not isinstance(image, FileImage):
        path = getattr(image, "path", None)
        member = image.address.removeprefix(f"{path}:") if path else image.address.rpartition(":")[2]
        return member.replace(" ", "_") if member.startswith("row ") else member
    if root and is_local(image.path):
        prefix = root.rstrip("/") + "/"
        if image.path.startswith(prefix):
            return image.path.removeprefix(prefix)
    return os.path.basename(image.path.partition("?")[0])  # noqa: PTH119


@dataclass(frozen=True)
class DeferredImage:
    """A file object that reads an image, or one frame of it, when the model needs it."""

    image: ImageRef
    frame: int = 0

    @property
    def name(self) -> str:
        """The image's address."""
        return self.image.address

    def seekable(self) -> bool:
        """Return False: the image is read once."""
        return False

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            ImageError: The image cannot be read, or has no such frame.
            InputError: The reference is not an image file.
        """
        value = self.image.read()
        if hasattr(value, "read"):
            value = value.read()
        if isinstance(value, (str, os.PathLike)):
            path = os.fspath(value)
            if not is_local(path):
                value = download(path)
            elif os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 (a pipe may never end)
                raise ImageError(f"cannot read {path}: not a regular file")
            else:
                with wrap_errors(path), open(path, "rb") as file:  # noqa: PTH123
                    value = file.read()
        if isinstance(value, (bytes, bytearray, memoryview)):
            return encode_frame(bytes(value), self.frame, self.name) if self.frame else bytes(value)
        raise InputError(f"{self.name} must be an image file, got {type(value).__name__}")


def encode_frame(data: bytes, frame: int, name: str) -> bytes:
    """Return one frame of an animation, or one page of a file, as an image file with equal pixels."""
    image = identify(io.BytesIO(data))
    if image is None:
        return data  # the loader reports it
    with image:
        count = getattr(image, "n_frames", 1)
        if count == 1:
            return data
        if frame >= count:
            raise ImageError(f"cannot read {name}: --frame must be below its {count} frames, got {frame}")
        check_limits(image, name, image.size)
        image.seek(frame)
        image.load()
        out = io.BytesIO()
        fits_png = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        image.copy().save(out, "PNG" if fits_png else "TIFF", exif=image.getexif())
        return out.getvalue()
