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


def pack_texts(ids: Tensor, mask: Tensor, counts: Sequence[int], pad_id: int) -> dict[str, Tensor]:
    """Put several texts in one row.

    Args:
        ids: Token ids (C, T) of texts.
        mask: Attention mask (C, T).
        counts: Number of texts in each of I rows.
        pad_id: Token that fills rows up.

    Returns:
        `ids` (I, L); the `positions` (I, L) of tokens in their texts; and as `mask` (I, L) the number of each token's
        text in its row, from 1, with 0 for padding.
    """
    lengths = mask.sum(1).tolist()
    texts_by_row: list[range] = []
    first = 0
    for count in counts:
        texts_by_row.append(range(first, first + count))
        first += count
    shape = len(counts), max(sum(lengths[text] for text in texts) for texts in texts_by_row)
    packed_ids = torch.full(shape, pad_id)
    numbers, positions = torch.zeros_like(packed_ids), torch.zeros_like(packed_ids)
    for row, texts in enumerate(texts_by_row):
        start = 0
        for number, text in enumerate(texts, 1):
            end = start + lengths[text]
            packed_ids[row, start:end] = ids[text, : lengths[text]]
            numbers[row, start:end] = number
            positions[row, start:end] = torch.arange(lengths[text])
            start = end
    return {"ids": packed_ids, "mask": numbers, "positions": positions}


def as_tensor(values: Sequence[int] | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Return whole numbers as int64, and other numbers as float32."""
    array = np.asarray(values)
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else np.float32))


def normalize_batch(
    batch: Mapping[str, Tensor], settings: ImageSettings, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Move a batch to a device and normalize its pixels there.

    Pixels travel as bytes, which take a quarter of the size of floats, and cached features in half precision.

    Args:
        batch: Tensors by name; images are bytes (B, S, S, 3) or cached features (B, C, G, G).
        settings: Mean and standard deviation of the model's pixels.
        device: Target device; `None` keeps each tensor on its device.

    Returns:
        The same names; images are floats (B, 3, S, S) or (B, C, G, G).
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    for name in IMAGE_FIELDS:
        if name in moved:
            is_cached = moved[name].is_floating_point()
            moved[name] = moved[name].float() if is_cached else to_tensor(moved[name], settings)
    return moved
