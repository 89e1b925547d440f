"""Recall of retrieval by ITC, as a quick measure during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from openblip.model.matcher import Matcher


@torch.no_grad()
def measure_recall(model: Matcher, batches: Iterable[Any]) -> dict[str, float]:
    """Measure the recall of retrieval by ITC among the images of some batches.

    Args:
        model: The model, in evaluation mode.
        batches: Batches of retrieval; an image with several texts counts once.

    Returns:
        R@1, 5 and 10 in percent from text to image (`t2i_r1` ...) and from image to text (`i2t_r1` ...), and their
        mean, `r_mean`.
    """
    image_rows, text_rows, id_rows = [], [], []
    for batch in batches:
        image_rows.append(model.embed_image(model.encode_image(batch.pixels)).float())
        text_rows.append(model.embed_text(batch.ids, batch.mask).float())
        id_rows.append(batch.image_ids)
    image_ids = torch.cat(id_rows)
    unique_ids, image_of_text = torch.unique(image_ids, return_inverse=True)
    row_numbers = torch.arange(len(image_ids), device=image_ids.device)
    first_rows = torch.full_like(unique_ids, len(image_ids)).scatter_reduce(0, image_of_text, row_numbers, "amin")
    scores = torch.cat(text_rows) @ torch.cat(image_rows)[first_rows].T  # (texts, images)
    matches = image_of_text[:, None] == torch.arange(len(unique_ids), device=image_ids.device)
    recalls: dict[str, float] = {}
    for direction, table, truth in (("t2i", scores, matches), ("i2t", scores.T, matches.T)):
        best_match = table.masked_fill(~truth, -torch.inf).amax(1, keepdim=True)
        rank = (table > best_match).sum(1)
        recalls |= {f"{direction}_r{k}": 100 * (rank < k).float().mean().item() for k in (1, 5, 10)}
    return recalls | {"r_mean": sum(recalls.values()) / len(recalls)}
