"""Read images, and store images without a local file."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from openblip.capfilt.rows import Row, ScoredText
from openblip.capfilt.rules import Rule
from openblip.data.files import is_local
from openblip.data.images import FileImage, ImageRef, MemberImage, MemoryImage
from openblip.errors import ImageError, OpenBlipError
from openblip.io import atomic

Fetch = Callable[[str], bytes]

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}


def is_web(image: ImageRef) -> bool:
    """Return whether reading an image sends a request to a server."""
    return isinstance(image, FileImage) and image.path.startswith(("http://", "https://"))


def read_bytes(image: ImageRef, fetch: Fetch | None) -> bytes:
    """Return the encoded image.

    Args:
        image: The image.
        fetch: Function that fetches a web address; `None` forbids fetching.

    Raises:
        ImageError: The image cannot be read, or must not be fetched.
    """
    try:
        if is_web(image):
            if fetch is None:
                raise ImageError("the image is on the web: allow it with --allow-fetch")
            return fetch(image.address)
        value = image.read()
        if isinstance(value, (str, os.PathLike)):
            return Path(value).read_bytes()
    except ImageError:
        raise
    except OpenBlipError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        raise ImageError(f"cannot read {image.address}: {error.strerror or error}") from error
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "read"):
        return bytes(value.read())
    picture = value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def name_image(image: ImageRef) -> str | None:
    """Return the path of an image for training, or `None` if the image must be stored.

    The path of a file is its own, and the path of a member of a local tar is the tar's path and the member's name.
    Images on the web, in Parquet cells and in remote or compressed tars have no path.
    """
    if isinstance(image, FileImage):
        if is_web(image):
            return None
        return os.path.abspath(image.path) if is_local(image.path) else image.path  # noqa: PTH100
    if isinstance(image, (MemberImage, MemoryImage)):
        tar, separator, member = image.address.partition(".tar:")
        if separator and is_local(tar) and member:
            return os.path.abspath(f"{tar}.tar") + f":{member}"  # noqa: PTH100
    return None


@dataclass
class StoredImage:
    """The position of an image in a tar, and of the JSON next to it."""

    name: str
    json_offset: int | None = None
    json_size: int | None = None


class ImageTar:
    """A tar of images that becomes visible when it is closed.

    Args:
        path: The tar.
        rule: With a rule, the tar is a WebDataset tar for training: every image has a JSON member with its texts and
            verdicts. Without a rule, the tar contains only images.
    """

    def __init__(self, path: Path, rule: Rule | None) -> None:
        self.path, self.rule = path, rule
        self._replacement: AbstractContextManager[Path] | None = None
        self._file: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None
        self._next_number = 0

    def add(self, row: Row, data: bytes) -> StoredImage:
        """Add an image, and the JSON of its row.

        Args:
            row: The row.
            data: The encoded image.

        Returns:
            The names and positions in the tar.
        """
        stem = f"{self._next_number:09d}"
        self._next_number += 1
        name = f"{stem}.{_suffix(data)}"
        self._add_member(name, data)
        if self.rule is None:
            return StoredImage(name)
        content = encode_row(row, self.rule)
        offset = self._add_member(f"{stem}.json", content)
        return StoredImage(name, offset, len(content))

    def copy(self, names: Collection[str]) -> None:
        """Add the members of the existing tar that belong to rows, at their positions.

        Members from a call that was stopped before it wrote its rows come after these, and are left out.

        Args:
            names: Names of the images.
        """
        stems = {name.partition(".")[0] for name in names}
        self._next_number = 1 + max(map(int, stems), default=-1)
        with tarfile.open(self.path, "r:") as previous:
            for info in previous:
                content = previous.extractfile(info)
                if content is not None and info.name.partition(".")[0] in stems:
                    self._add_member(info.name, content.read())

    def close(self, *, failed: bool = False) -> None:
        """Rename the tar to its final name, or discard it if the shard failed."""
        if self._tar is None or self._replacement is None or self._file is None:
            return
        if failed:
            self._file.close()
            error = InterruptedError("the shard was not completed")
            self._replacement.__exit__(InterruptedError, error, None)
            return
        self._tar.close()
        self._file.close()
        self._replacement.__exit__(None, None, None)

    def _add_member(self, name: str, content: bytes) -> int:
        if self._tar is None:
            self._replacement = atomic.replace_path(self.path, sync=True)
            self._file = self._replacement.__enter__().open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        info = tarfile.TarInfo(name)
        info.size = len(content)
        offset = self._tar.offset + tarfile.BLOCKSIZE  # after the header
        self._tar.addfile(info, io.BytesIO(content))
        return int(offset)


def encode_row(row: Row, rule: Rule, size: int | None = None) -> bytes:
    """Return the JSON of a row with the verdicts of a rule.

    The JSON is padded with spaces to the size that it has if every text is kept, so other verdicts can replace it in
    place.

    Args:
        row: The row.
        rule: The rule.
        size: Size in bytes of the JSON to replace.
    """
    verdicts = rule.accepts(_numbers(row.texts, "itm"), _numbers(row.texts, "itc")).tolist()
    largest = [text.reason is None for text in row.texts]
    content = _dump(row, verdicts)
    return content.ljust(size if size is not None else len(_dump(row, largest)) + len(row.texts))


def update_tar(path: Path, rows: Sequence[Row], rule: Rule) -> None:
    """Replace the verdicts of rows in a tar, in place. No image is read or written.

    Args:
        path: The tar.
        rows: The rows to change.
        rule: The rule.
    """
    with path.open("rb+") as file:
        for row in rows:
            if row.json_offset is not None and row.json_size is not None:
                file.seek(row.json_offset)
                file.write(encode_row(row, rule, row.json_size))
        file.flush()
        os.fsync(file.fileno())


def _dump(row: Row, verdicts: Sequence[bool]) -> bytes:
    kept = [text.text for text, verdict in zip(row.texts, verdicts, strict=True) if verdict]
    texts = []
    for text, verdict in zip(row.texts, verdicts, strict=True):
        fields = {"text": text.text, "source": text.source, "itm": text.itm, "itc": text.itc, "logprob": text.logprob}
        numbers = {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
        texts.append({**numbers, "kept": verdict, **({} if text.reason is None else {"reason": text.reason})})
    values = {"key": row.key, "captions": kept, "filtered": not kept, "texts": texts}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _numbers(texts: Sequence[ScoredText], name: str) -> Any:
    values = [getattr(text, name) for text in texts]
    return np.array([np.nan if value is None else value for value in values], np.float32)


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _SUFFIXES.get(image.format or "", "jpg")
    except Exception:  # an image that only optional decoders of the loader can read
        return "jpg"
