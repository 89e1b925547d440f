"""Where records come from: one call for every form of data (no torch)."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from openblip.data.files import is_local, require
from openblip.data.images import IMAGE_SUFFIXES, Locator
from openblip.data.schema import Columns, check_columns
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.combined import ConcatSource
from openblip.data.sources.folder import METADATA, open_folder, walk
from openblip.data.sources.hub import PREFIX, is_dataset, open_hub
from openblip.data.sources.parquet import ParquetStream, open_parquet
from openblip.data.sources.table import Table, TableBuilder
from openblip.data.sources.tars import TarStream, open_tar
from openblip.data.sources.text import open_csv, open_json, open_jsonl
from openblip.errors import InputError

Kind = Literal["folder", "json", "jsonl", "csv", "parquet", "tar", "hub", "rows"]

FORMS = """a folder of pictures (photo.jpg with photo.txt beside it, or a metadata.jsonl),
  a .jsonl, .json, .csv, .tsv or .parquet file, WebDataset .tar files (shards-{000..012}.tar or shards-*.tar),
  any of these files at an address that fsspec knows (https://, s3://, ...),
  hub:NAME or hub:NAME:CONFIG for a dataset of the Hugging Face hub, a datasets object, or a list of rows"""

_SUFFIXES: dict[str, Kind] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar", ".tar.zst": "tar",
}  # fmt: skip
_BRACES = re.compile(r"\{([^{}]*)\}")


def open_source(
    source: Any,
    *,
    kind: Kind | None = None,
    images: str | os.PathLike[str] | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
    split: str | None = None,
    stream: bool | None = None,
) -> Source | Stream:
    """Open data by what it is: :data:`FORMS` lists the forms; several are given as a list and become one source.

    ``kind`` overrides the guess by suffix. ``images`` is the folder, or the address, below which relative picture paths
    lie: by default where the annotation file is. ``columns`` and ``keep`` are those of :mod:`openblip.data.schema`.
    ``split`` chooses one split of a hub dataset or of a Karpathy file. ``stream=True`` reads tars, Parquet and hub
    datasets from end to end, as compressed and remote tars always are; ``stream=False`` insists on an index.

    A row that is no record is one of the source's ``problems``. Raises ``InputError`` if there is no data, or not one
    record among it.
    """
    check_columns(columns or {})
    root = None if images is None else os.fspath(images)
    options: dict[str, Any] = {"columns": columns, "keep": tuple(keep)}
    found = _as_one(list(_open(source, kind, root, split, stream, options)))
    if isinstance(found, Stream) or len(found):
        return found
    # Not a few bad records: a mistake.
    first = f"; the first: {found.problems[0]}" if found.problems else ""
    raise InputError(f"{found.name} has no record that can be used ({len(found.problems)} bad rows{first})")


def _open(
    source: Any, kind: Kind | None, root: str | None, split: str | None, stream: bool | None, options: dict[str, Any]
) -> Iterator[Source | Stream]:
    if is_dataset(source):
        yield open_hub(source, split=split, images=root, **options)
    elif isinstance(source, (str, os.PathLike)):
        yield from _parts(os.fspath(source), kind, root, split, stream, options)
    elif not isinstance(source, Sequence) or isinstance(source, (bytes, bytearray)) or not source:
        raise InputError(f"cannot read data from {_short(source)}. Data can be:\n  {FORMS}")
    elif all(isinstance(row, Mapping) for row in source):
        yield _open_rows(source, root, options)
    else:
        for one in source:
            yield from _open(one, kind, root, split, stream, options)


def _parts(
    address: str, kind: Kind | None, root: str | None, split: str | None, stream: bool | None, options: dict[str, Any]
) -> list[Source | Stream]:
    """The sources that one address, which may stand for several files, leads to."""
    if address.startswith(PREFIX) or kind == "hub":
        return [open_hub(address, split=split, stream=bool(stream), images=root, **options)]
    if is_local(address) and Path(address).is_dir():
        return _in_folder(address, kind, root, split, stream, options)
    paths = expand(address)
    kinds = {kind or _kind(path) for path in paths}
    if len(kinds) > 1:
        raise InputError(f"{address} stands for {' and '.join(sorted(kinds))} files: give a list of them")
    found = kinds.pop()
    if found in ("tar", "parquet") and (stream or (stream is None and not _indexable(found, paths))):
        return [TarStream(paths, **options) if found == "tar" else ParquetStream(paths, images=root, **options)]
    if found == "tar" and not _indexable(found, paths):
        raise InputError(f"{address} can only be streamed, not indexed: it is remote or compressed")
    return [_open_file(path, found, root, split, options) for path in paths]


def _in_folder(
    folder: str, kind: Kind | None, root: str | None, split: str | None, stream: bool | None, options: dict[str, Any]
) -> list[Source | Stream]:
    """A folder of pictures, or of tars, or of Parquet files, or one that ``datasets`` has saved."""
    if (Path(folder) / "dataset_dict.json").exists() or (Path(folder) / "state.json").exists():
        saved = require("datasets", f"reading {folder}").load_from_disk(folder)
        return [open_hub(saved, split=split, images=root, **options)]
    if kind in (None, "folder"):
        names = list(walk(folder))
        pictures = any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in names)  # noqa: PTH122
        metadata = any(os.path.basename(name) in METADATA for name in names)  # noqa: PTH119
        if pictures or metadata or kind:
            return [open_folder(folder, **options)]
    for wanted in ("tar", "parquet"):
        files = [name for name in walk(folder) if _SUFFIXES.get(_suffix(name)) == wanted]
        if files and kind in (None, wanted):
            return [part for name in files for part in _parts(name, None, root, split, stream, options)]
    raise InputError(f"{folder} holds no pictures, tars or Parquet files. Data can be:\n  {FORMS}")


def _open_file(path: str, kind: Kind, root: str | None, split: str | None, options: dict[str, Any]) -> Source:
    try:
        if kind == "tar":
            return open_tar(path, **options)
        if kind == "json":
            return open_json(path, images=root, split=split, **options)
        opener = {"jsonl": open_jsonl, "csv": open_csv, "parquet": open_parquet}[kind]
        return opener(path, images=root, **options)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _open_rows(rows: Sequence[Mapping[str, Any]], root: str | None, options: dict[str, Any]) -> Table:
    builder = TableBuilder("rows", Locator(root or ""), **options)
    for number, row in enumerate(rows):
        builder.add(f"[{number}]", row)
    return builder.build()


def _as_one(sources: Sequence[Source | Stream]) -> Source | Stream:
    if len(sources) == 1:
        return sources[0]
    indexed = [source for source in sources if isinstance(source, Source)]
    streams = [source for source in sources if isinstance(source, Stream)]
    if indexed and streams:
        raise InputError(
            f"{streams[0].name} is a stream and {indexed[0].name} is not: open them with stream=True, or apart"
        )
    return ChainedStream(streams) if streams else ConcatSource(indexed)


class ChainedStream(Stream):
    """The shards of several streams."""

    def __init__(self, parts: Sequence[Stream]) -> None:
        self.parts = tuple(parts)
        self.name = ", ".join(part.name for part in parts)
        self._shards = [(part, shard) for part in parts for shard in range(part.shards)]
        self.shards = len(self._shards)

    def read(self, shard: int) -> Any:
        """The records of one shard of one of the streams."""
        part, number = self._shards[shard]
        return part.read(number)


# --- addresses ----------------------------------------------------------------------------------------------------


def expand(address: str) -> list[str]:
    """The files that an address stands for: ``{000..012}`` and ``{a,b}`` are written out, ``*`` and ``?`` looked up."""
    written = [""]
    for position, part in enumerate(_BRACES.split(address)):
        choices = _choices(part) if position % 2 else [part]
        written = [start + choice for start, choice in itertools.product(written, choices)]
    if is_local(address) and Path(address).exists():
        return [address]
    paths = [path for one in written for path in _matches(one)]
    if not paths:
        raise InputError(f"{address} matches no file")
    if missing := [path for path in paths if is_local(path) and not Path(path).exists()]:
        hint = f"\n  If it is a dataset of the hub, write {PREFIX}{address}." if _like_hub(address) else ""
        raise InputError(f"there is no file or folder {missing[0]}.{hint} Data can be:\n  {FORMS}")
    return paths


def _choices(inside: str) -> list[str]:
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = found.groups()
        return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return inside.split(",") if "," in inside else ["{" + inside + "}"]


def _matches(path: str) -> list[str]:
    if not any(letter in path for letter in "*?["):
        return [path]
    if is_local(path):
        return sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (it takes an absolute pattern)
    files = require("fsspec", f"reading {path}").core.url_to_fs(path)
    scheme = path.partition("://")[0]
    return sorted(name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in files[0].glob(files[1]))


def _kind(path: str) -> Kind:
    suffix = _suffix(path)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    raise InputError(f"cannot tell what {path} is by its name: give kind=. Data can be:\n  {FORMS}")


def is_table(path: str) -> bool:
    """Whether a path names, by its suffix, a file of records rather than a picture."""
    return _suffix(path) in _SUFFIXES


def _suffix(path: str) -> str:
    name = path.partition("?")[0].lower() if not is_local(path) else path.lower()
    double = "." + ".".join(os.path.basename(name).rsplit(".", 2)[1:])  # noqa: PTH119
    return double if double in _SUFFIXES else os.path.splitext(name)[1]  # noqa: PTH122


def _indexable(kind: Kind, paths: Sequence[str]) -> bool:
    return all(is_local(path) and (kind != "tar" or _suffix(path) == ".tar") for path in paths)


def _like_hub(address: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", address) is not None


def _short(source: object) -> str:
    text = repr(source)
    return f"{type(source).__name__} {text if len(text) < 60 else text[:57] + '...'}"
