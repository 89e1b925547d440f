"""Retrieval as the benchmarks do it: ITC makes a shortlist for each query, ITM re-ranks it (Li et al. 2022, 4.3).

Shapes: I images, T texts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.errors import InputError, OpenBlipError
from openblip.evaluation.store import Store
from openblip.pipelines.base import TEXT_ROWS, iter_chunks, prefetch
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.preprocess.text import clean_caption, clean_expression

UNSCORED = -100.0  # of what is on no shortlist
LEFT_OUT = -math.inf  # similarity
BLOCK = 32  # images that are kept together; at base size their states are 57 MB


@dataclass(frozen=True)
class Scores:
    """ITC cosine plus ITM logit of each query (row) with each candidate; :data:`UNSCORED` off the shortlist.

    ``failed`` tells of the images that could not be opened, by number. They and their texts are on no shortlist.
    """

    texts_of_images: NDArray[np.float32]  # (I, T)
    images_of_texts: NDArray[np.float32]  # (T, I)
    failed: Mapping[int, str] = field(default_factory=dict)


def rankings(scores: NDArray[np.float32]) -> list[list[int]]:
    """What is on the shortlist of each query, the best first; of equal scores the one that comes first."""
    found = []
    for row in scores:
        places = np.flatnonzero(row != UNSCORED)
        found.append(places[np.argsort(-row[places], kind="stable")].tolist())
    return found


def texts_as_ids(
    pipeline: RetrievalPipeline, texts: Iterable[str], max_words: int | None, max_tokens: int, *, bare: bool = False
) -> list[list[int]]:
    """Texts cleaned and cut as a protocol says; ids from [CLS] to [SEP].

    ``bare`` texts are without any punctuation and have all their words, as in mmpretrain. Without ``max_words`` others
    have all of theirs too.
    """
    words = sys.maxsize if max_words is None else max_words
    cleaned = (clean_expression(text) if bare else clean_caption(text, words) for text in texts)
    return [pipeline.model.token_ids(text, "cls", max_tokens) for text in cleaned]


def score(
    pipeline: RetrievalPipeline,
    images: Sequence[Any],
    texts: list[list[int]],
    k: int,
    *,
    owners: Sequence[int] = (),
    batch_size: int = 8,
    num_workers: int = 2,
    store: Store | None = None,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Scores both ways. Every pair that is on either shortlist is judged by ITM once.

    Images are encoded once and kept until their row is done; all of an image's texts are judged together, so that its
    keys and values are projected once. A shortlist is never longer than there are candidates. What is in the ``store``
    is not computed again. ``notify`` is told how many images are done, of how many, each of which counts twice: it is
    encoded, and later its row is judged.

    A picture that cannot be opened is left out, and with it its own texts, if ``owners`` (T,) tells the number of each
    text's image: what is left is ranked as if neither were there.
    """
    if k < 1:
        raise InputError(f"a shortlist of {k}")
    store = store or Store()
    runs = list(iter_chunks(range(len(images)), BLOCK))
    embedded = _texts(pipeline, texts, store)
    _images(pipeline, images, runs, store, batch_size, num_workers, lambda done: notify(done, 2 * len(images)))
    seen = torch.cat([store.get(f"images-{n}")["embeddings"] for n in range(len(runs))])
    similarity = seen @ embedded.T  # (I, T)
    similarity[list(store.failed)] = LEFT_OUT
    similarity[:, [text for text, image in enumerate(owners) if image in store.failed]] = LEFT_OUT
    for_images = _shortlist(similarity, k)
    for_texts = _shortlist(similarity.T, k)
    wanted = for_images | for_texts.T
    logits = torch.zeros_like(similarity)
    for n, run in enumerate(runs):
        _rows(pipeline, texts, wanted, n, run, store, lambda done: notify(len(images) + done, 2 * len(images)))
        for i in (i for i in run if i not in store.failed):
            places, values = cast("tuple[Tensor, Tensor]", store.row(i))
            logits[i, places] = values
    both = similarity + logits
    return Scores(_masked(both, for_images), _masked(both.T, for_texts), store.failed)


def _texts(pipeline: RetrievalPipeline, texts: list[list[int]], store: Store) -> Tensor:
    """Embeddings (T, E)."""
    found = []
    for n, part in enumerate(iter_chunks(texts, BLOCK * TEXT_ROWS)):
        if not store.has(f"texts-{n}"):
            store.put(f"texts-{n}", embeddings=pipeline.embed_texts(part).cpu())
        found.append(store.get(f"texts-{n}")["embeddings"])
    return torch.cat(found)


def _images(
    pipeline: RetrievalPipeline,
    images: Sequence[Any],
    runs: list[list[int]],
    store: Store,
    batch_size: int,
    num_workers: int,
    notify: Callable[[int], None],
) -> None:
    """Put the states and embeddings of the images that are not in the store there."""
    lacking = [n for n in range(len(runs)) if not store.has(f"images-{n}")]
    opened = prefetch(
        pipeline.model.open_image, (images[i] for n in lacking for i in runs[n]), num_workers, 2 * batch_size
    )
    done = sum(len(run) for n, run in enumerate(runs) if n not in set(lacking))
    for n in lacking:
        states, embeddings = [torch.empty(0)], torch.zeros(len(runs[n]), pipeline.model.config.embed_width)
        for numbers in iter_chunks(runs[n], batch_size):
            good = list(_good(zip(numbers, islice(opened, len(numbers)), strict=True), store))
            if good:
                seen = pipeline.model.encode_images(cast(Any, [one for _, one in good]))
                states.append(seen.cpu())
                embeddings[[i - runs[n][0] for i, _ in good]] = pipeline.embed_images(seen).cpu().float()
            notify(done := done + len(numbers))
        whole = torch.cat(states[1:] or states)
        store.put(f"states-{n}", states=whole)  # first: what has embeddings has states, or all its rows
        store.put(f"images-{n}", embeddings=embeddings)


def _good(opened: Iterable[tuple[int, Any]], store: Store) -> Iterator[tuple[int, Any]]:
    """The images that were opened, with their numbers; the others are told to the store."""
    for i, one in opened:
        if i in store.failed:  # by a run that was stopped before it had kept this block
            continue
        if isinstance(one, OpenBlipError):
            store.fail(i, str(one))
        else:
            yield i, one


def _rows(
    pipeline: RetrievalPipeline,
    texts: list[list[int]],
    wanted: Tensor,
    n: int,
    run: list[int],
    store: Store,
    notify: Callable[[int], None],
) -> None:
    """Put the rows of a block of images that are not in the store there."""
    good = [i for i in run if i not in store.failed]
    lacking = [i for i in good if store.row(i) is None]
    states = store.get(f"states-{n}")["states"] if lacking else None
    for i in lacking:
        places = wanted[i].nonzero()[:, 0]
        assert states is not None
        store.put_row(i, places, _logits(pipeline, [texts[j] for j in places.tolist()], states[good.index(i), None]))
        notify(i + 1)
    notify(run[-1] + 1)
    store.drop(f"states-{n}")


@torch.inference_mode()
def _logits(pipeline: RetrievalPipeline, rows: list[list[int]], state: Tensor) -> Tensor:
    """The raw logit of "they match" (B,) of texts with one image."""
    return pipeline.match_logits(pipeline.with_enc(rows), state.to(pipeline.model.engine.device))


def _shortlist(similarity: Tensor, k: int) -> Tensor:
    """Which candidates are among each row's k most similar, (Q, C) bool, but for those that were left out."""
    best = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, best, True) & (similarity > LEFT_OUT)


def _masked(scores: Tensor, kept: Tensor) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", scores.masked_fill(~kept, UNSCORED).numpy())
