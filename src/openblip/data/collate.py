"""Parts of batches: pictures side by side, texts padded, numbers as tensors; and pixels as the model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from openblip.preprocess.image import to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import FirstToken, Tokenizer

if TYPE_CHECKING:
    from openblip.data.tasks import Sample

PICTURES = ("pixels", "first", "second")


def stack_images(samples: Sequence[Sample], number: int = 0) -> Tensor:
    """ImageRef ``number`` of each sample, as bytes (B, S, S, 3)."""
    return torch.from_numpy(np.stack([sample.pixels[number] for sample in samples]))


def tokens(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    first: FirstToken,
    max_length: int | None,
    pad_to: Literal["longest"] | int = "longest",
    prefix: str = "",
) -> dict[str, Tensor]:
    """``ids`` and ``mask`` (B, T) of texts."""
    found = tokenizer.encode(texts, first, max_length, pad_to)
    return {f"{prefix}ids": found.ids, f"{prefix}mask": found.mask}


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """``ids`` and ``mask`` (B, T) of rows of ids."""
    ids = np.full((len(rows), max(map(len, rows))), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}


def numbers(values: Sequence[int] | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Whole numbers as int64, others as float32."""
    array = np.asarray(values)
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float32))


def normalised(
    batch: Mapping[str, Tensor], settings: ImageSettings, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """The batch on a device, its pictures as normalised floats (B, 3, S, S).

    Bytes travel, a quarter of what floats would; the arithmetic is done where they arrive.
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: to_tensor(tensor, settings) if name in PICTURES else tensor for name, tensor in moved.items()}
