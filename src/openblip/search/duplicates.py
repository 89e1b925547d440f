"""Groups of near-duplicates among all images of an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openblip.errors import InputError
from openblip.search.store import Store

_BLOCK = 1024  # images that are compared with all others at once


def group_duplicates(store: Store, min_similarity: float) -> Sequence[Sequence[str]]:
    """Return groups of images that are connected by near-duplicates.

    Args:
        store: The store.
        min_similarity: Cosine from which two images are near-duplicates.

    Returns:
        The ids of each group of at least two images.

    Raises:
        InputError: `min_similarity` is not a cosine above 0.
    """
    if not 0 < min_similarity <= 1:
        raise InputError(f"min_similarity must be above 0 and at most 1, got {min_similarity}")
    ids: list[str] = []
    blocks = [np.empty((0, store.settings.width), np.float32)]
    for names, rows in store.iter_embeddings(_BLOCK):
        ids += names
        blocks.append(rows)
    embeddings = np.concatenate(blocks)
    parents = list(range(len(ids)))

    def find(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for start in range(0, len(ids), _BLOCK):
        block = embeddings[start : start + _BLOCK]
        for row, column in np.argwhere(block @ embeddings[start:].T >= min_similarity).tolist():
            if row < column:
                parents[find(start + column)] = find(start + row)
    groups: dict[int, list[str]] = {}
    for number, name in enumerate(ids):
        groups.setdefault(find(number), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
