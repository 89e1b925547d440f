"""Datasets of the Hugging Face hub: objects of the `datasets` library, or their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openblip.data.files import require
from openblip.data.images import ImageRef, Locator
from openblip.data.problems import Problem
from openblip.data.records import Record
from openblip.data.schema import IMAGE_COLUMNS, Columns
from openblip.data.sources.addresses import HUB_PREFIX
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.table import Table, TableBuilder, read_record
from openblip.errors import InputError

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource


def is_dataset(source: object) -> bool:
    """Return whether an object comes from the `datasets` library, without importing it."""
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
    """Open a dataset of the hub; a record's address is `name[17]`.

    Args:
        source: A dataset object, or `hub:name` or `hub:name:config`.
        split: Split to open.
        stream: Read the dataset in sequence, without downloading it first.
        images: Folder of images that rows name by path.
        columns: The column of a field, where it differs from the schema.
        keep: Further columns to keep.

    Returns:
        An indexed source, or a stream if the dataset has no length.

    Raises:
        InputError: If the dataset cannot be opened, or `split` is needed.
    """
    name = ""
    if isinstance(source, str):
        name = source
        source = _load(source.removeprefix(HUB_PREFIX), split, stream)
    if isinstance(source, Mapping):  # a DatasetDict, one dataset per split
        if split is None and len(source) == 1:
            split = next(iter(source))
        if split not in source:
            raise InputError(f"split must be one of {', '.join(source)}, got {split}")
        source = source[split]
    name = name or f"{getattr(getattr(source, 'info', None), 'dataset_name', None) or 'dataset'}"
    image_columns, text_columns = _split_columns(source, columns)
    if hasattr(source, "__len__"):
        return _build_table(name, source, image_columns, text_columns, images, columns, keep)
    return HubStream(name, source, image_columns, images, columns, keep)


def _load(name: str, split: str | None, stream: bool) -> Any:
    datasets = require("datasets", "reading a dataset of the hub")
    name, _, config = name.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=stream)
    except Exception as error:  # the library raises errors of many kinds
        raise InputError(f"cannot open the dataset {name!r}: {error}") from error


def _split_columns(dataset: Any, columns: Columns | None) -> tuple[list[str], list[str]]:
    """Return the columns to read images from, and the columns without images."""
    features = dataset.features or {}
    mapped = (columns or {}).get("image", ())
    names = [mapped] if isinstance(mapped, str) else list(mapped)
    image_features = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if not names:
        names = [name for name in IMAGE_COLUMNS if name in image_features][:1] or image_features[:1]
    return [name for name in names if name in image_features], [name for name in features if name not in image_features]


def _build_table(
    name: str,
    dataset: Any,
    image_columns: list[str],
    text_columns: list[str],
    images: str | None,
    columns: Columns | None,
    keep: Sequence[str],
) -> Table:
    feature = require("datasets", "reading a dataset of the hub").Image(decode=False)
    dataset = dataset.with_format(None)
    encoded: Any = dataset.select_columns(image_columns) if image_columns else None
    for column in image_columns:
        encoded = encoded.cast_column(column, feature)
    locate = _RowLocator(encoded, Locator(images or ""))
    builder = TableBuilder(name, locate, _without_images(columns, image_columns), keep)
    rows = dataset.select_columns(text_columns) if text_columns else [{}] * len(dataset)
    for number, row in enumerate(rows):
        builder.add(f"[{number}]", row, [(number, column) for column in image_columns] or None)
    return builder.build()


@dataclass(frozen=True)
class RowImage:
    """An image in a row of a dataset object."""

    dataset: Any
    row: int
    column: str
    address: str
    locate: Locator

    def read(self) -> ImageSource:
        """Return the value in the row."""
        return self.locate(self.dataset[self.row][self.column], self.address).read()


class _RowLocator:
    """Makes references of (row, column) pairs, and of values as `Locator` does."""

    def __init__(self, dataset: Any, locate: Locator) -> None:
        self.dataset, self.locate = dataset, locate

    def __call__(self, value: Any, address: str) -> ImageRef:
        if not isinstance(value, tuple):
            return self.locate(value, address)
        row, column = value
        return RowImage(self.dataset, row, column, f"{address}/{column}", self.locate)


class HubStream(Stream):
    """A streaming dataset, in the dataset's own shards."""

    def __init__(
        self,
        name: str,
        dataset: Any,
        image_columns: list[str],
        images: str | None = None,
        columns: Columns | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        feature = require("datasets", "reading a dataset of the hub").Image(decode=False)
        for column in image_columns:
            dataset = dataset.cast_column(column, feature)
        self.name = name
        self.shards = int(dataset.num_shards)
        self._dataset, self._image_columns = dataset, image_columns
        self._locate, self._keep = Locator(images or ""), keep
        self._columns = _without_images(columns, image_columns)

    def read(self, shard: int) -> Iterator[Record | Problem]:
        """Yield the records of one shard, with their images in memory."""
        rows = self._dataset.shard(num_shards=self.shards, index=shard) if self.shards > 1 else self._dataset
        for number, row in enumerate(rows):
            address = f"{self.name}[shard {shard}, {number}]"
            images = [row[column] for column in self._image_columns] or None
            yield read_record(
                row, address, self.name, self._locate, images=images, columns=self._columns, keep=self._keep
            )


def _without_images(columns: Columns | None, image_columns: Sequence[str]) -> Columns | None:
    """Return the column mapping without images, if these are read separately."""
    return {key: name for key, name in (columns or {}).items() if key != "image"} if image_columns else columns
