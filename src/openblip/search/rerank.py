"""The second stage of a search: ITM judges each image of the shortlist (Li et al. 2022, section 4.3).

Training draws the negatives of ITM from the softmax of ITC (hard negatives, section 3.2). The log-odds of ITM therefore
compare an image with the images that ITC considers likely: up to a constant, the log-probability of an image given the
text is the log-odds of ITM plus the logit of ITC (the cosine divided by the temperature). Results are ranked by this
sum.

Shapes: B images, M image tokens, D width, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openblip.engine.protocols import Matches, TorchModel
from openblip.errors import OpenBlipError
from openblip.io import limits
from openblip.pipelines.base import iter_chunks
from openblip.search.images import IndexedImage
from openblip.search.state_cache import StateCache
from openblip.search.store import Store

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.pipelines.retrieval import RetrievalPipeline


def judge_images(
    blip: Blip,
    store: Store,
    images: Sequence[IndexedImage],
    text: str,
    minus: Sequence[str] = (),
    cache: StateCache | None = None,
) -> Iterator[tuple[float, float] | OpenBlipError]:
    """Yield how well images match a text.

    Args:
        blip: The model of the index.
        store: The store, which may have the states of the images.
        images: The images.
        text: The text that images should match.
        minus: Texts that images should not match.
        cache: Cache of the states of images without stored states.

    Yields:
        For each image, the score and the probability that it matches `text` and none of `minus`, or the error of an
        image that cannot be read. The score is the log-odds of the match plus the log-probability of no match with
        `minus`.
    """
    pipeline = blip.pipeline("retrieval")
    rows = pipeline.with_enc(pipeline.tokenize([text, *minus]))
    for chunk in iter_chunks(images, blip.batch_size):
        limits.check()
        states = load_states(blip, store, chunk, cache)
        usable = [value for value in states if isinstance(value, Tensor)]
        log_odds = match_log_odds(pipeline, rows, torch.stack(usable)) if usable else torch.empty(0, len(rows))
        rejected = torch.nn.functional.softplus(log_odds[:, 1:]).sum(1)  # -log(1 - p), summed
        scores = (log_odds[:, 0] - rejected).tolist()
        probabilities = (log_odds[:, 0].sigmoid() * (-rejected).exp()).tolist()
        judged = iter(zip(scores, probabilities, strict=True))
        for value in states:
            yield value if isinstance(value, OpenBlipError) else next(judged)


def load_states(
    blip: Blip, store: Store, images: Sequence[IndexedImage], cache: StateCache | None
) -> list[Tensor | OpenBlipError]:
    """Return the states of images: stored ones, cached ones, or computed from the files.

    Args:
        blip: The model of the index.
        store: The store.
        images: The images.
        cache: The cache, which receives computed states.

    Returns:
        The states (M, D) of each image on the device of the model, or the error of an image that cannot be read.
    """
    engine = blip.pipeline("retrieval").model.engine
    dtype = engine.require(TorchModel).dtype if engine.supports(TorchModel) else torch.float32
    known = dict(store.states([image.id for image in images]))
    if cache is not None:
        known |= {image.id: states for image in images if (states := cache.get(image.hash)) is not None}
    results: dict[str, Tensor | OpenBlipError] = {}
    for name, rows in known.items():
        results[name] = torch.from_numpy(rows.copy()).to(engine.device, dtype)
    missing = [image for image in images if image.id not in results]
    encoded = blip.encode_images((image.path for image in missing), task="retrieval", on_error="return")
    for image, result in zip(missing, encoded, strict=True):
        if isinstance(result, OpenBlipError):
            results[image.id] = result
            continue
        computed = result.states[id(engine)]
        if cache is not None:  # results do not depend on the content of the cache
            half = computed.half()
            cache.put(image.hash, half.cpu().numpy())
            computed = half.to(computed.dtype)
        results[image.id] = computed
    return [results[image.id] for image in images]


def match_log_odds(pipeline: RetrievalPipeline, rows: Sequence[list[int]], states: Tensor) -> Tensor:
    """Return the log-odds (B, T) of a match of every image with every text, on the CPU.

    Args:
        pipeline: The retrieval pipeline.
        rows: Token ids of the texts, the first token [ENC].
        states: States (B, M, D) of the images.
    """
    engine = pipeline.model.engine.require(Matches)
    memory = engine.project_images(states)
    columns = []
    for row in rows:
        ids, mask = pipeline.model.pad([row])
        columns.append(engine.match_log_odds(ids.expand(len(states), -1), mask.expand(len(states), -1), memory).cpu())
    return torch.stack(columns, 1)
