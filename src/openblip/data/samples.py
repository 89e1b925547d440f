"""Samples: one unit of a batch, with pixels as bytes and texts not yet tokenized (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
Features: TypeAlias = NDArray[np.float16]  # of a frozen stem, from a cache
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images with their texts.

    Attributes:
        images: Pixels (S, S, 3), or cached features (C, G, G), of one image, or of two for a pair.
        texts: Captions, questions, statements or expressions, cleaned.
        image_id: Equal for samples of one image, and only for those.
    """

    images: Sequence[Pixels | Features]
    texts: Sequence[str]
    image_id: int = 0


@dataclass(frozen=True, kw_only=True)
class VqaSample(Sample):
    """An image with questions, and the weighted answers to each question."""

    answers: Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class NlvrSample(Sample):
    """Two images with a statement, and whether the statement is true (1) or false (0)."""

    label: int


@dataclass(frozen=True, kw_only=True)
class GroundingSample(Sample):
    """An image with expressions, and the box that each expression names."""

    boxes: Sequence[Box]


@dataclass(frozen=True, kw_only=True)
class VisdialSample(Sample):
    """A captioned image, and token ids of its dialog with the right and with a wrong answer."""

    dialogs: Sequence[Sequence[int]]
