"""Where records come from: `open_source` opens every form of data (no torch)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.files import is_local, require
from openblip.data.images import Locator
from openblip.data.schema import Columns, check_columns
from openblip.data.sources.addresses import FORMS, HUB_PREFIX, Kind, expand, is_indexable, kind_of
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.combined import ChainedStream, ConcatSource
from openblip.data.sources.folder import METADATA, open_folder, walk
from openblip.data.sources.hub import is_dataset, open_hub
from openblip.data.sources.parquet import ParquetStream, open_parquet
from openblip.data.sources.table import TableBuilder
from openblip.data.sources.tars import TarStream, open_tar
from openblip.data.sources.text import open_csv, open_json, open_jsonl
from openblip.errors import InputError
from openblip.preprocess.formats import is_image_name


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
    """Open data in any form.

    Args:
        source: A path, an address, a dataset object, a list of rows, or a list of any of these, which become one
            source. `openblip.data.sources.addresses.FORMS` lists the forms.
        kind: The form of the data; guessed by suffix if `None`.
        images: Folder or address for relative image paths; by default the folder of the annotation file.
        columns: The column of a field, such as `{"caption": "title"}`, where it differs from the record schema
            (`openblip.data.schema`).
        keep: Further columns to keep in `Record.extra`.
        split: Split of a hub dataset or of a Karpathy file.
        stream: `True` reads tars, Parquet and hub datasets in sequence, as compressed and remote tars always are.
            `False` requires an index.

    Returns:
        A `Source`, whose records have numbers, or a `Stream`. Rows that cannot become records are listed in
        `Source.problems`. Files that a folder passes over are counted in `Source.skips`.

    Raises:
        InputError: If there is no data, the form is unknown, or no row can become a record.

    Examples:
        >>> source = open_source([{"image": "cat.jpg", "caption": "a cat"}], images="photos")
        >>> source[0].captions
        ('a cat',)
    """
    check_columns(columns or {})
    root = None if images is None else os.fspath(images)
    opener = _Opener(kind, root, split, stream, {"columns": columns, "keep": tuple(keep)})
    opened = _combine(list(opener.open(source)))
    if isinstance(opened, Stream) or len(opened):
        return opened
    reason = "it has no rows"
    if opened.problems:
        reason = f"{len(opened.problems)} bad rows; the first: {opened.problems[0]}"
    raise InputError(f"{opened.name} has no record that can be used ({reason})")


class _Opener:
    """Opens each form of data with the options of one call."""

    def __init__(
        self, kind: Kind | None, root: str | None, split: str | None, stream: bool | None, options: dict[str, Any]
    ) -> None:
        self.kind, self.root, self.split, self.stream = kind, root, split, stream
        self.options = options

    def open(self, source: Any) -> Iterator[Source | Stream]:
        if is_dataset(source):
            yield open_hub(source, split=self.split, images=self.root, **self.options)
        elif isinstance(source, (str, os.PathLike)):
            yield from self._open_address(os.fspath(source), self.kind)
        elif not isinstance(source, Sequence) or isinstance(source, (bytes, bytearray)) or not source:
            text = repr(source)
            short = text if len(text) < 60 else text[:57] + "..."
            raise InputError(f"cannot read data from {type(source).__name__} {short}. Data can be:\n  {FORMS}")
        elif all(isinstance(row, Mapping) for row in source):
            builder = TableBuilder("rows", Locator(self.root or "", search=self.root is not None), **self.options)
            for number, row in enumerate(source):
                builder.add(f"[{number}]", row)
            yield builder.build()
        else:
            for entry in source:
                yield from self.open(entry)

    def _open_address(self, address: str, kind: Kind | None) -> list[Source | Stream]:
        """Open an address, which may stand for several files."""
        if address.startswith(HUB_PREFIX) or kind == "hub":
            stream = bool(self.stream)
            return [open_hub(address, split=self.split, stream=stream, images=self.root, **self.options)]
        if is_local(address) and Path(address).is_dir():
            return self._open_folder(address)
        paths = expand(address)
        kinds = {kind or _require_kind(path) for path in paths}
        if len(kinds) > 1:
            raise InputError(f"{address} must match files of one form, got {' and '.join(sorted(kinds))}; use a list")
        kind = kinds.pop()
        if kind in ("tar", "parquet") and (self.stream or (self.stream is None and not is_indexable(kind, paths))):
            if kind == "tar":
                return [TarStream(paths, **self.options)]
            return [ParquetStream(paths, images=self.root, **self.options)]
        if kind == "tar" and not is_indexable(kind, paths):
            raise InputError(f"{address} is remote or compressed and can only be streamed; remove stream=False")
        return [self._open_file(path, kind) for path in paths]

    def _open_folder(self, folder: str) -> list[Source | Stream]:
        """Open a folder of images, tars or Parquet files, or a folder that `datasets` has saved."""
        if (Path(folder) / "dataset_dict.json").exists() or (Path(folder) / "state.json").exists():
            saved = require("datasets", f"reading {folder}").load_from_disk(folder)
            return [open_hub(saved, split=self.split, images=self.root, **self.options)]
        if self.kind in (None, "folder"):
            names = list(walk(folder))
            has_images = any(map(is_image_name, names))
            has_metadata = any(os.path.basename(name) in METADATA for name in names)  # noqa: PTH119
            if has_images or has_metadata or self.kind:
                return [open_folder(folder, **self.options)]
        for kind in ("tar", "parquet"):
            files = [name for name in walk(folder) if kind_of(name) == kind]
            if files and self.kind in (None, kind):
                return [source for name in files for source in self._open_address(name, None)]
        raise InputError(f"{folder} has no images, tars or Parquet files. Data can be:\n  {FORMS}")

    def _open_file(self, path: str, kind: Kind) -> Source:
        try:
            if kind == "tar":
                return open_tar(path, **self.options)
            if kind == "json":
                return open_json(path, images=self.root, split=self.split, **self.options)
            opener = {"jsonl": open_jsonl, "csv": open_csv, "parquet": open_parquet}[kind]
            return opener(path, images=self.root, **self.options)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _require_kind(path: str) -> Kind:
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"the form of {path} cannot be guessed by its suffix: pass kind=. Data can be:\n  {FORMS}")
    return kind


def _combine(sources: Sequence[Source | Stream]) -> Source | Stream:
    if len(sources) == 1:
        return sources[0]
    indexed = [source for source in sources if isinstance(source, Source)]
    streams = [source for source in sources if isinstance(source, Stream)]
    if indexed and streams:
        raise InputError(
            f"{streams[0].name} is a stream and {indexed[0].name} is not: open both with stream=True, or separately"
        )
    return ChainedStream(streams) if streams else ConcatSource(indexed)
