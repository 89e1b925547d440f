"""Parts of batches: stacked images, tokenized texts, numbers as tensors, and normalized pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openblip.data.samples import Sample
from openblip.preprocess.image import to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import FirstToken, Tokenizer

IMAGE_FIELDS = ("pixels", "left_pixels", "right_pixels")


def stack_images(samples: Sequence[Sample], index: int = 0) -> Tensor:
    """Return image `index` of each sample as bytes (B, S, S, 3)."""
    return torch.from_numpy(np.stack([sample.images[index] for sample in samples]))


def tokenize(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    first_token: FirstToken,
    max_tokens: int | None,
    pad_to: Literal["longest"] | int = "longest",
    prefix: str = "",
) -> dict[str, Tensor]:
    """Return the token `ids` and the attention `mask` (B, T) of texts, with `prefix` before both names."""
    encoded = tokenizer.encode(texts, first_token, max_tokens, pad_to)
    return {f"{prefix}ids": encoded.ids, f"{prefix}mask": encoded.mask}


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Return padded `ids` and their attention `mask` (B, T) for rows of token ids."""
    ids = np.full((len(rows), max(map(len, rows))), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}


def as_tensor(values: Sequence[int] | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Return whole numbers as int64, and other numbers as float32."""
    array = np.asarray(values)
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float32))


def normalize_batch(
    batch: Mapping[str, Tensor], settings: ImageSettings, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Move a batch to a device and normalize its pixels there.

    Pixels travel as bytes, which take a quarter of the size of floats.

    Args:
        batch: Tensors by name; images are bytes (B, S, S, 3).
        settings: Mean and standard deviation of the model's pixels.
        device: Target device; `None` keeps each tensor on its device.

    Returns:
        The same names; images are floats (B, 3, S, S).
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: to_tensor(tensor, settings) if name in IMAGE_FIELDS else tensor for name, tensor in moved.items()}
