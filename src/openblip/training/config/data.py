"""The data of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the data is, and how texts are cut.

    Attributes:
        train: Training data, in any form that `open_source` accepts.
        rotate: Sources of which each epoch sees one, in turn, together with all of `train`, as the paper reads LAION.
        val: Validation data.
        images: Folder for relative image paths.
        split: Split of the training data.
        val_split: Split of the validation data; `split` if `None`.
        columns: The column of a field, where it differs from the record schema.
        stream: Read tars, Parquet and hub datasets in sequence; `None` decides by the data.
        samples_per_epoch: Length of an epoch of a stream.
        shuffle_window: Samples of a stream that are shuffled at a time.
        texts_per_image: Captions, questions or expressions drawn for an image each time; as published, `None` makes
            every one of them a sample with its image.
        packed: Put up to `texts_per_image` captions of an image in one row (caption only).
        views: Folder of cached stem features (`openblip.data.views`) that stand for the images; `augment` has no effect
            then, and the stem should be frozen.
        view_count: Views of each image that training draws from.
        prompt: Text that every caption starts with; the prompt of the start if `None`.
        max_words: Words per text; the published limit of the task if `None`.
        max_tokens: Tokens per text; the published limit of the task if `None`.
        vg_weight: Weight of an answer from Visual Genome; LAVIS uses 1.
        max_bad_records: Bad records that end the run if exceeded; `None` sets no limit.
        num_workers: Processes that load data; at most one per core is started.
    """

    train: tuple[str, ...] = ()
    rotate: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    images: str | None = None
    split: str | None = None
    val_split: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    stream: bool | None = None
    samples_per_epoch: int | None = None
    shuffle_window: int = 1000
    texts_per_image: int | None = None
    packed: bool = False
    views: str | None = None
    view_count: int = 1
    prompt: str | None = None
    max_words: int | None = None
    max_tokens: int | None = None
    vg_weight: float = 0.2
    max_bad_records: int | None = None
    num_workers: int = 4
