"""Datasets of the Hugging Face hub: objects of the ``datasets`` library, or their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openblip.data.files import require
from openblip.data.images import ImageRef, Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import PICTURE, Columns
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import InputError

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

PREFIX = "hub:"


def is_dataset(source: object) -> bool:
    """Whether an object comes from the ``datasets`` library, which is not imported to find out."""
    return type(source).__module__.split(".")[0] == "datasets"


def open_hub(
    source: Any,
    *,
    split: str | None = None,
    stream: bool = False,
    images: str | None = None,
    columns: Columns | None = None,
    keep: Sequence[str] = (),
) -> Source | Stream:
    """A dataset object, or ``hub:name`` or ``hub:name:config``; a record's address is ``name[17]``.

    ``images`` is the folder of pictures that rows name by path.
    """
    name = ""
    if isinstance(source, str):
        name = source
        source = _load(source.removeprefix(PREFIX), split, stream)
    if isinstance(source, Mapping):  # a DatasetDict: one dataset for each split
        source = _split(source, split)
    name = name or f"{getattr(getattr(source, 'info', None), 'dataset_name', None) or 'dataset'}"
    held, texts = _columns_of(source, columns)
    if hasattr(source, "__len__"):
        return _table(name, source, held, texts, images, columns, keep)
    return HubStream(name, source, held, images, columns, keep)


def _load(name: str, split: str | None, stream: bool) -> Any:
    datasets = require("datasets", "reading a dataset of the hub")
    name, _, config = name.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=stream)
    except Exception as error:  # the library raises errors of many kinds
        raise InputError(f"cannot open the dataset {name!r}: {error}") from error


def _split(splits: Mapping[str, Any], split: str | None) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is not None and split in splits:
        return splits[split]
    raise InputError(f"the dataset has the splits {', '.join(splits)}; choose one with split=")


def _columns_of(dataset: Any, columns: Columns | None) -> tuple[list[str], list[str]]:
    """The columns that hold pictures, and the others."""
    features = dataset.features or {}
    given = (columns or {}).get("image", ())
    wanted = [given] if isinstance(given, str) else list(given)
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if not wanted:
        wanted = [name for name in PICTURE if name in found][:1] or found[:1]
    held = [name for name in wanted if name in found]
    return held, [name for name in features if name not in found]


# --- by number ----------------------------------------------------------------------------------------------------


def _table(
    name: str,
    dataset: Any,
    held: list[str],
    texts: list[str],
    images: str | None,
    columns: Columns | None,
    keep: Sequence[str],
) -> Table:
    image = require("datasets", "reading a dataset of the hub").Image(decode=False)
    dataset = dataset.with_format(None)
    pictures: Any = dataset.select_columns(held) if held else None
    for column in held:
        pictures = pictures.cast_column(column, image)
    root = Locator(images or "")
    builder = TableBuilder(name, _Row(pictures, root), _taken(columns, held), keep)
    rows = dataset.select_columns(texts) if texts else [{}] * len(dataset)
    for number, row in enumerate(rows):
        builder.add(f"[{number}]", row, [(number, column) for column in held] or None)
    return builder.build()


@dataclass(frozen=True)
class RowImage:
    """A picture in a row of a dataset object."""

    dataset: Any
    row: int
    column: str
    address: str
    root: Locator

    def read(self) -> ImageSource:
        return self.root(self.dataset[self.row][self.column], self.address).read()


class _Row:
    def __init__(self, dataset: Any, root: Locator) -> None:
        self.dataset, self.root = dataset, root

    def __call__(self, ref: Any, address: str) -> ImageRef:
        if not isinstance(ref, tuple):
            return self.root(ref, address)
        row, column = ref
        return RowImage(self.dataset, row, column, f"{address}/{column}", self.root)


# --- one after another --------------------------------------------------------------------------------------------


class HubStream(Stream):
    """A streaming dataset; its own shards are the shards."""

    def __init__(
        self,
        name: str,
        dataset: Any,
        held: list[str],
        images: str | None = None,
        columns: Columns | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        image = require("datasets", "reading a dataset of the hub").Image(decode=False)
        for column in held:
            dataset = dataset.cast_column(column, image)
        self.name = name
        self.shards = int(dataset.num_shards)
        self._dataset, self._held = dataset, held
        self._root, self._columns, self._keep = Locator(images or ""), _taken(columns, held), keep

    def read(self, shard: int) -> Iterator[Record | Problem]:
        """The records of one shard, with their pictures in memory."""
        rows = self._dataset.shard(num_shards=self.shards, index=shard) if self.shards > 1 else self._dataset
        for number, row in enumerate(rows):
            address = f"{self.name}[shard {shard}, {number}]"
            refs = [row[column] for column in self._held] or None
            yield read_record(row, address, self.name, self._root, refs=refs, columns=self._columns, keep=self._keep)


def _taken(columns: Columns | None, held: Sequence[str]) -> Columns | None:
    return {key: name for key, name in (columns or {}).items() if key != "image"} if held else columns
