"""Retrieval as the benchmarks do it: ITC makes a shortlist for each query, ITM re-ranks it (Li et al. 2022, 4.3).

Shapes: I images, T texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.errors import InputError, OpenBlipError
from openblip.inputs import ahead, chunks
from openblip.model.matcher import Matcher
from openblip.preprocess.text import clean_caption
from openblip.runner import TEXT_ROWS, Runner, Texts, in_a_row

UNSCORED = -100.0  # of what is on no shortlist


@dataclass(frozen=True)
class Scores:
    """ITC cosine plus ITM logit of each query (row) with each candidate; :data:`UNSCORED` off the shortlist."""

    texts_of_images: NDArray[np.float32]  # (I, T)
    images_of_texts: NDArray[np.float32]  # (T, I)


def texts_as_ids(runner: Runner, texts: Iterable[str], max_words: int, max_tokens: int) -> Texts:
    """Texts cleaned and cut as a protocol says; ids from [CLS] to [SEP]."""
    cleaned = (clean_caption(text, max_words) for text in texts)
    rows = (runner.tokenizer.encode([text], "cls", max_length=max_tokens).ids[0].tolist() for text in cleaned)
    return Texts(list(rows))


def score(
    runner: Runner, images: Sequence[Any], texts: Texts, k: int, *, batch_size: int = 8, workers: int = 2
) -> Scores:
    """Scores both ways. Every pair that is on either shortlist is judged by ITM once.

    Images are encoded once and kept; all of an image's texts are judged together, so that its keys and values are
    projected once. A shortlist is never longer than there are candidates. Raises the error of a picture that cannot be
    opened, naming it: a benchmark without one of its pictures is another benchmark.
    """
    if k < 1:
        raise InputError(f"a shortlist of {k}")
    states = _encode(runner, images, batch_size, workers)
    embedded = runner.embed_texts(texts).cpu()
    seen = torch.cat([runner.embed_images(torch.stack(part)).cpu() for part in chunks(states, batch_size)])
    similarity = seen @ embedded.T  # (I, T)
    for_images = _shortlist(similarity, k)
    for_texts = _shortlist(similarity.T, k)
    wanted = for_images | for_texts.T
    logits = torch.zeros_like(similarity)
    grounded = [[runner.tokenizer.enc_id, *ids[1:]] for ids in texts.ids]
    for i, state in enumerate(states):
        for part in chunks(wanted[i].nonzero()[:, 0].tolist(), TEXT_ROWS):
            logits[i, part] = _logits(runner, [grounded[j] for j in part], in_a_row(state[None]))
    both = similarity + logits
    return Scores(_masked(both, for_images), _masked(both.T, for_texts))


def _encode(runner: Runner, images: Sequence[Any], batch_size: int, workers: int) -> list[Tensor]:
    states: list[Tensor] = []
    for chunk in chunks(ahead(runner.open, images, workers, 2 * batch_size), batch_size):
        for one in chunk:
            if isinstance(one, OpenBlipError):
                raise one
        states += runner.states(cast(Any, chunk)).cpu().unbind(0)
    return states


@torch.inference_mode()
def _logits(runner: Runner, rows: list[list[int]], state: Tensor) -> Tensor:
    """The raw logit of "they match" (B,) of texts with one image."""
    ids, mask = runner.pad(rows)
    device = runner.engine.device
    matcher = cast(Matcher, runner.eager.model)
    return matcher.match_logits(ids.to(device), mask.to(device), state.to(device))[:, 1].float().cpu()


def _shortlist(similarity: Tensor, k: int) -> Tensor:
    """Which candidates are among each row's k most similar, (Q, C) bool."""
    best = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, best, True)


def _masked(scores: Tensor, kept: Tensor) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", scores.masked_fill(~kept, UNSCORED).numpy())
