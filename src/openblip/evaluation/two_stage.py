"""Two-stage retrieval: ITC selects a shortlist for each query, ITM re-ranks it (Li et al. 2022, section 4.3).

Shapes: I images, T texts, E embedding width, Q queries, C candidates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.errors import InputError, OpenBlipError
from openblip.evaluation.retrieval_store import RetrievalStore
from openblip.evaluation.workspace import ProgressCallback, ignore_progress
from openblip.pipelines.base import TEXT_ROWS, OpenedImage, TaskModel, iter_chunks, prefetch
from openblip.pipelines.inputs import ImageInput
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.preprocess.text import clean_caption, clean_expression

UNSCORED = -100.0  # the score of a candidate that is not on the shortlist
EXCLUDED = -math.inf  # the similarity of images that could not be opened, and of their texts
BLOCK = 32  # images whose states are stored together: 57 MB at base size


@dataclass(frozen=True)
class RetrievalScores:
    """ITC cosine plus ITM logit of each query with each candidate; `UNSCORED` if it is not on the shortlist.

    Attributes:
        texts_of_images: Scores of texts for images, (I, T).
        images_of_texts: Scores of images for texts, (T, I).
        failed: Why images could not be opened, by number. They and their texts are on no shortlist.
    """

    texts_of_images: NDArray[np.float32]
    images_of_texts: NDArray[np.float32]
    failed: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def mask(
        scores: Tensor, for_images: Tensor, for_texts: Tensor, failed: dict[int, str] | None = None
    ) -> RetrievalScores:
        """Return the scores of shortlists.

        Args:
            scores: The scores of all pairs, (I, T).
            for_images: Which texts are on the shortlist of each image, (I, T) bool.
            for_texts: Which images are on the shortlist of each text, (T, I) bool.
            failed: Why images could not be opened, by number.

        Returns:
            The scores of the pairs on the shortlists, and `UNSCORED` elsewhere.
        """
        texts_of_images = scores.masked_fill(~for_images, UNSCORED).numpy()
        images_of_texts = scores.T.masked_fill(~for_texts, UNSCORED).numpy()
        return RetrievalScores(texts_of_images, images_of_texts, failed or {})


def rank_candidates(scores: NDArray[np.float32]) -> list[list[int]]:
    """Return the shortlist of each query, best first; of equal scores, the lower number first.

    Args:
        scores: Scores (Q, C), `UNSCORED` off the shortlist.

    Returns:
        The numbers of the candidates of each query.
    """
    rankings = []
    for row in scores:
        candidates = np.flatnonzero(row != UNSCORED)
        rankings.append(candidates[np.argsort(-row[candidates], kind="stable")].tolist())
    return rankings


def encode_texts(
    model: TaskModel,
    texts: Iterable[str],
    max_words: int | None,
    max_tokens: int,
    *,
    strip_punctuation: bool = False,
) -> list[list[int]]:
    """Clean texts as a protocol does and return their token ids.

    Args:
        model: The retrieval model.
        texts: The texts.
        max_words: The most words of a text; `None` for no limit.
        max_tokens: The most tokens of a text, [CLS] and [SEP] included.
        strip_punctuation: Remove all punctuation, and no words, as mmpretrain does.

    Returns:
        The ids of each text, from [CLS] to [SEP].
    """
    limit = sys.maxsize if max_words is None else max_words
    rows = []
    for text in texts:
        cleaned = clean_expression(text) if strip_punctuation else clean_caption(text, limit)
        rows.append(model.token_ids(cleaned, "cls", max_tokens))
    return rows


def score(
    model: TaskModel,
    images: Sequence[ImageInput],
    texts: Sequence[list[int]],
    shortlist: int,
    *,
    image_of_text: Sequence[int] = (),
    store: RetrievalStore | None = None,
    progress: ProgressCallback = ignore_progress,
) -> RetrievalScores:
    """Score images and texts in both directions. Every pair on either shortlist passes through ITM once.

    An image is encoded once, and its states are stored until its row is done. All texts of an image are scored
    together, so that its keys and values are projected once. An image that cannot be opened is excluded together with
    its texts; the others are ranked as if it did not exist.

    Args:
        model: The retrieval model.
        images: Images or videos.
        texts: The ids of each text, from [CLS] to [SEP].
        shortlist: The number of candidates that ITM re-ranks for each query.
        image_of_text: The number of the image that each text belongs to, T entries; needed to exclude texts.
        store: Where to store results. Stored results are not computed again.
        progress: Called with the number of steps that are done, and of all steps: two per image.

    Returns:
        The scores.

    Raises:
        InputError: If `shortlist` is less than 1.
        EvaluationError: If the store cannot be written or read.
    """
    if shortlist < 1:
        raise InputError(f"shortlist must be at least 1, got {shortlist}")
    search = _Search(model, images, texts, store or RetrievalStore(), progress)
    similarity = search.embed_images() @ search.embed_texts().T  # (I, T)
    failed = search.store.failed
    similarity[list(failed)] = EXCLUDED
    similarity[:, [text for text, image in enumerate(image_of_text) if image in failed]] = EXCLUDED
    for_images = select_candidates(similarity, shortlist)
    for_texts = select_candidates(similarity.T, shortlist)
    scores = similarity + search.score_pairs(for_images | for_texts.T)
    return RetrievalScores.mask(scores, for_images, for_texts, failed)


def select_candidates(similarity: Tensor, shortlist: int) -> Tensor:
    """Return which candidates are among the most similar ones of each query.

    Args:
        similarity: Similarities (Q, C), `EXCLUDED` for excluded candidates.
        shortlist: The number of candidates to select.

    Returns:
        The selected candidates, (Q, C) bool, without excluded ones.
    """
    best = similarity.topk(min(shortlist, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, best, True) & (similarity > EXCLUDED)


class _Search:
    """The steps of a search over one set of images and texts, each of which is resumed from the store."""

    def __init__(
        self,
        model: TaskModel,
        images: Sequence[ImageInput],
        texts: Sequence[list[int]],
        store: RetrievalStore,
        progress: ProgressCallback,
    ) -> None:
        self.model = model
        self.pipeline = RetrievalPipeline(model)
        self.images = images
        self.texts = texts
        self.store = store
        self.blocks = list(iter_chunks(range(len(images)), BLOCK))
        self.progress = progress

    def embed_texts(self) -> Tensor:
        """Return the ITC embeddings of the texts, (T, E)."""
        embeddings = []
        for number, rows in enumerate(iter_chunks(self.texts, BLOCK * TEXT_ROWS)):
            if not self.store.has_block(f"texts-{number}"):
                self.store.put_block(f"texts-{number}", embeddings=self.pipeline.embed_texts(rows).cpu())
            embeddings.append(self.store.get_block(f"texts-{number}")["embeddings"])
        return torch.cat(embeddings)

    def embed_images(self) -> Tensor:
        """Store the states of the images, and return their ITC embeddings, (I, E)."""
        missing = [number for number in range(len(self.blocks)) if not self.store.has_block(f"images-{number}")]
        batching = self.model.batching
        opened = prefetch(
            self.model.open_image,
            (self.images[image] for number in missing for image in self.blocks[number]),
            batching.num_workers,
            2 * batching.batch_size,
        )
        done = sum(len(block) for number, block in enumerate(self.blocks) if number not in missing)
        for number in missing:
            block = self.blocks[number]
            states: list[Tensor] = []
            embeddings = torch.zeros(len(block), self.model.config.embed_width)
            for batch in iter_chunks(block, batching.batch_size):
                good = self._keep_opened(batch, islice(opened, len(batch)))
                if good:
                    encoded = self.model.encode_images(list(good.values()))
                    states.append(encoded.cpu())
                    embeddings[[image - block[0] for image in good]] = self.pipeline.embed_images(encoded).cpu().float()
                done += len(batch)
                self.progress(done, 2 * len(self.images))
            # States first: a block with embeddings must have its states, or all its rows.
            self.store.put_block(f"states-{number}", states=torch.cat(states) if states else torch.empty(0))
            self.store.put_block(f"images-{number}", embeddings=embeddings)
        return torch.cat([self.store.get_block(f"images-{number}")["embeddings"] for number in range(len(self.blocks))])

    def _keep_opened(self, batch: list[int], opened: Iterable[OpenedImage | OpenBlipError]) -> dict[int, OpenedImage]:
        """Return the images that could be opened, by number, and report the others to the store."""
        good = {}
        for image, result in zip(batch, opened, strict=True):
            if image in self.store.failed:  # excluded by a run that stopped before it stored this block
                continue
            if isinstance(result, OpenBlipError):
                self.store.fail(image, str(result))
            else:
                good[image] = result
        return good

    @torch.inference_mode()
    def score_pairs(self, selected: Tensor) -> Tensor:
        """Return the ITM logits of selected pairs, (I, T); 0 for others.

        Args:
            selected: Which pairs to score, (I, T) bool.
        """
        logits = torch.zeros(selected.shape)
        for number, block in enumerate(self.blocks):
            good = [image for image in block if image not in self.store.failed]
            missing = [image for image in good if self.store.get_row(image) is None]
            states = self.store.get_block(f"states-{number}")["states"] if missing else torch.empty(0)
            for image in missing:
                texts = selected[image].nonzero()[:, 0]
                rows = self.pipeline.with_enc([self.texts[text] for text in texts.tolist()])
                image_states = states[good.index(image), None].to(self.model.engine.device)
                self.store.put_row(image, texts, self.pipeline.match_logits(rows, image_states))
                self.progress(len(self.images) + image + 1, 2 * len(self.images))
            self.progress(len(self.images) + block[-1] + 1, 2 * len(self.images))
            self.store.drop_block(f"states-{number}")
            for image in good:
                row = self.store.get_row(image)
                assert row is not None
                logits[image, row[0]] = row[1]
        return logits
