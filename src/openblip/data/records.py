"""One kind of record for every source: pictures that are opened late, and all that people wrote about them (no torch).

A :class:`Record` is what every source gives and every task takes. Its fields are filled from rows by
:mod:`openblip.data.rows`, which documents the names a row may use. A record says where it came from (``address``: file
and line, tar and member), so that whatever is wrong with it can be reported and found.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from openblip.errors import ImageError, InputError
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from PIL import Image

    from openblip.preprocess.image import ImageSource

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".heif"}
)


# --- what was written ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question and what people answered, one entry for each person; equal answers repeat.

    ``source`` is the data set named in the row ("vqa" or "vg" in the published files). ``auto`` marks a question that a
    rule made: fit for training, not for reporting. ``wrong`` holds answers that were offered and are not right.
    """

    text: str
    answers: tuple[str, ...] = ()
    source: str = ""
    id: int | str | None = None
    auto: bool = False
    wrong: tuple[str, ...] = ()

    def weighted_answers(self, vg_weight: float = 0.2) -> dict[str, float]:
        """Each distinct answer, in the order given, with its share of all.

        The paper's code gives the single answers of Visual Genome (``source`` "vg") 0.2, LAVIS gives them 1.0.
        """
        if self.source == "vg":
            return dict.fromkeys(self.answers, vg_weight)
        return {answer: times / len(self.answers) for answer, times in Counter(self.answers).items()}


@dataclass(frozen=True)
class Expression:
    """Words that name one thing in the picture, and its box (left, top, right, bottom) in pixels of that picture."""

    text: str
    box: tuple[float, float, float, float]
    auto: bool = False


@dataclass(frozen=True)
class Record:
    """One picture, or a pair of them, with its texts.

    ``captions`` holds the statement of a pair too, and ``label`` whether it is true (NLVR2). ``image_id`` is equal for
    records of one picture and only for those: dense from 0 in a source that knows its length, else a 63-bit hash.
    ``extra`` holds the columns that the caller asked to keep.
    """

    pictures: tuple[Picture, ...]
    address: str
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    refs: tuple[Expression, ...] = ()
    label: int | None = None
    image_id: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many of each there are; ``answered`` counts the questions that have an answer."""
        return {
            "pictures": len(self.pictures),
            "captions": len(self.captions),
            "questions": len(self.questions),
            "answered": sum(1 for question in self.questions if question.answers),
            "refs": len(self.refs),
            "labelled": int(self.label is not None),
        }


# --- pictures, not yet opened -------------------------------------------------------------------------------------


class Picture(Protocol):
    """Where a picture is. Small, picklable, and opened by whoever needs the pixels."""

    @property
    def address(self) -> str:
        """What a person needs to find it; equal for the same picture."""

    def read(self) -> ImageSource:
        """What :func:`openblip.preprocess.image.load_image` takes; raises ``OSError`` or ``ImageError``."""


def open_picture(picture: Picture) -> Image.Image:
    """The picture, upright RGB; raises :class:`ImageError`, whatever is wrong with it."""
    try:
        source = picture.read()
    except OSError as error:
        raise ImageError(f"cannot read {picture.address}: {error.strerror or error}") from error
    return load_image(source)


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own: a path, an ``https`` address, or any address that fsspec knows."""

    path: str

    @property
    def address(self) -> str:
        return self.path

    def read(self) -> ImageSource:
        by_path = is_local(self.path) or self.path.startswith(("https://", "http://"))
        return self.path if by_path else read_bytes(self.path)


@dataclass(frozen=True)
class SpanPicture:
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
class MemberPicture:
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
        return SpanPicture(self.path, self.member, *span).read()


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
class HeldPicture:
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

    def __call__(self, ref: Any, address: str) -> Picture:
        """The picture of the record at ``address``; ``InputError`` if ``ref`` is none of these."""
        if isinstance(ref, Mapping):
            ref = ref.get("bytes") or ref.get("path")
        if isinstance(ref, os.PathLike):
            ref = os.fspath(ref)
        if isinstance(ref, str) and ref and "\0" not in ref:
            return _named(join(self.root, ref))
        if isinstance(ref, (bytes, bytearray)) or hasattr(ref, "convert") or hasattr(ref, "__array_interface__"):
            return HeldPicture(ref, f"{address}/image")
        raise InputError(f"a picture is named by a path or an address, not {ref!r}")


_MEMBER = re.compile(r"(.+\.(?:tar|tar\.gz|tgz|tar\.bz2|tar\.xz|tar\.zst)):(.+)", re.IGNORECASE | re.DOTALL)


def _named(path: str) -> Picture:
    """The picture in a file of its own, or in the tar before the colon."""
    found = _MEMBER.fullmatch(path) if ":" in path else None
    if found is None or (is_local(path) and os.path.lexists(path)):
        return FilePicture(path)
    tar, member = found.groups()
    if not is_local(tar) or not tar.lower().endswith(".tar"):
        raise InputError(f"{path} lies in a compressed or remote tar, which can only be read whole: unpack it")
    return MemberPicture(tar, member)


# --- what could not be used ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A record that could not be used: where it is and why."""

    address: str
    reason: str

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}"


@dataclass
class Report:
    """The bad records met so far. Each is counted once, however often it comes; the first ``kept`` are listed."""

    problems: list[Problem] = field(default_factory=list)
    kept: int = 1000
    reasons: Counter[str] = field(default_factory=Counter)
    _known: set[str] = field(default_factory=set)
    LINES: ClassVar[int] = 5

    def add(self, problem: Problem) -> bool:
        """Count a bad record; False if it was known already."""
        if problem.address in self._known:
            return False
        self._known.add(problem.address)
        self.reasons[problem.reason.replace(problem.address, "it")] += 1
        if len(self.problems) < self.kept:
            self.problems.append(problem)
        return True

    def extend(self, problems: Iterable[Problem]) -> None:
        """Count several."""
        for problem in problems:
            self.add(problem)

    def __len__(self) -> int:
        return len(self._known)

    def __str__(self) -> str:
        """A few lines for a person: how many, the commonest reasons, the first addresses."""
        if not self._known:
            return "no bad records"
        common = ", ".join(f"{times} x {reason}" for reason, times in self.reasons.most_common(self.LINES))
        lines = [f"{len(self)} bad records skipped: {common}", *map(str, self.problems[: self.LINES])]
        return "\n  ".join(lines + (["..."] if len(self) > self.LINES else []))


# --- files anywhere -----------------------------------------------------------------------------------------------


def is_local(address: str) -> bool:
    """Whether an address is a path and not ``scheme://...``."""
    return "://" not in address


def read_bytes(address: str) -> bytes:
    """All of a file, local or at any address that fsspec knows; ``OSError`` if it cannot be had."""
    if is_local(address):
        return Path(address).read_bytes()
    with remote(address) as file:
        data: bytes = file.read()
        return data


def remote(address: str) -> Any:
    """An open file at an fsspec address; whatever goes wrong is an ``OSError`` or an :class:`InputError`."""
    fsspec = need("fsspec", f"reading {address}")
    try:
        return fsspec.open(address, "rb").open()
    except OSError:
        raise
    except ImportError as error:  # the scheme's own library, such as s3fs, is missing
        raise InputError(f"cannot read {address}: {error}") from error
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@functools.cache
def need(module: str, purpose: str) -> Any:
    """An optional dependency, or an error that says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise InputError(f"{purpose} needs {library}, which is not installed: pip install 'openblip[data]'") from error


def join(root: str, name: str) -> str:
    """``name`` below ``root``; an absolute path or an address of its own stays what it is."""
    if not is_local(name):
        return name.removeprefix("file://")
    if not root or os.path.isabs(name):  # noqa: PTH117 (str in, str out: names may hold undecodable bytes)
        return name
    return f"{root.rstrip('/')}/{name}" if not is_local(root) else os.path.join(root, name)  # noqa: PTH118


def parent(address: str) -> str:
    """The folder that a file, local or remote, lies in."""
    return os.path.dirname(address) if is_local(address) else address.rpartition("/")[0]  # noqa: PTH120
