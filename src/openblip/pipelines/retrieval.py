"""Retrieval pipelines: match scores, embeddings and zero-shot classification.

Shapes: I images, B texts, T tokens, M image tokens, D width, E embedding width, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.engine.protocols import Embeddings, Matches, MatchLogits
from openblip.errors import InputError
from openblip.model.text import Memory
from openblip.pipelines.base import (
    TEXT_ROWS,
    Pipeline,
    Prepared,
    TaskModel,
    check_text,
    iter_chunks,
    iter_row_batches,
    iter_similar_lengths,
)
from openblip.pipelines.inputs import ImageInput
from openblip.preprocess.text import clean_caption
from openblip.results import Classification, Label, Match

MAX_WORDS = 30  # of texts to match and embed, as in training
MAX_TOKENS = 35

Embedding = NDArray[np.float32]


class RetrievalPipeline(Pipeline[tuple[ImageInput, "str | None"], "list[int]", "list[list[Match]]", "list[Match]"]):
    """Scores how well texts fit images. Items are pairs of an image and its text; a result is a list of matches.

    With `texts` every image is scored with all of them, and the text of an item is ignored.

    Args:
        model: The model of the retrieval task.
        texts: Texts for every image; they are embedded once.
    """

    def __init__(self, model: TaskModel, texts: Sequence[str] | None = None) -> None:
        super().__init__(model)
        self.rows = None if texts is None else self.tokenize(texts)
        self._embedded = None if self.rows is None else self.embed_texts(self.rows)

    def preprocess(self, item: tuple[ImageInput, str | None]) -> Prepared[list[int]]:
        """Return the opened image and the token ids of its text."""
        image, text = item
        opened = self.model.open_image(image)
        return Prepared(opened, self.tokenize([cast(str, text)])[0] if self.rows is None else [])

    def forward(self, batch: list[Prepared[list[int]]]) -> list[list[Match]]:
        """Return the matches of each image: with all texts, or with its own."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        paired = self.rows is None or self._embedded is None
        rows = [prepared.text for prepared in batch] if self.rows is None else self.rows
        texts = self.embed_texts(rows) if self._embedded is None else self._embedded
        similarities = self.embed_images(states) @ texts.T.to(states.device)
        if paired:
            similarities = similarities.diagonal()[:, None]
            engine = self.model.engine.require(Matches)
            probabilities = engine.match(*self.model.pad(self.with_enc(rows)), _join_frames(states))[:, None]
        else:
            probabilities = self.match_all(rows, _join_frames(states))
        scores = zip(probabilities.tolist(), similarities.tolist(), strict=True)
        return [[Match(p, cosine) for p, cosine in zip(ps, cosines, strict=True)] for ps, cosines in scores]

    def postprocess(self, raw: list[list[Match]], batch: list[Prepared[list[int]]]) -> list[list[Match]]:
        """Return the matches of each image."""
        return raw

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, cleaned as in training.

        Args:
            texts: The texts.

        Returns:
            Token ids of each text, from [CLS] to [SEP].

        Raises:
            InputError: A text is not a string.
        """
        cleaned = [clean_caption(check_text(text, "a text"), MAX_WORDS) for text in texts]
        return [self.model.token_ids(text, "cls", MAX_TOKENS) for text in cleaned]

    def reads_whole(self, text: str) -> bool:
        """Return whether the model reads a text to its end, or only its first words or tokens.

        Args:
            text: The text.

        Returns:
            Whether the text is within the limits of words and tokens.
        """
        words = clean_caption(text, len(text) + 1)
        return words == clean_caption(text, MAX_WORDS) and len(self.model.token_ids(words, "cls")) <= MAX_TOKENS

    def with_enc(self, rows: Sequence[list[int]]) -> list[list[int]]:
        """Return token ids with [ENC] as the first token, for the image-grounded encoder.

        Args:
            rows: Token ids of texts.

        Returns:
            New rows of token ids.
        """
        return [[self.model.tokenizer.enc_id, *ids[1:]] for ids in rows]

    def embed_texts(self, rows: Sequence[list[int]]) -> Tensor:
        """Embed texts.

        Args:
            rows: Token ids of B texts that start with [CLS].

        Returns:
            L2-normalized embeddings (B, E).
        """
        engine = self.model.engine.require(Embeddings)
        embeddings = torch.empty(len(rows), self.model.config.embed_width, device=engine.device)
        for indices in iter_similar_lengths(rows, TEXT_ROWS):
            embeddings[indices] = engine.embed_texts(*self.model.pad([rows[i] for i in indices]))
        return embeddings

    def embed_images(self, states: Tensor) -> Tensor:
        """Embed encoded images or videos.

        The embedding of a video is the projection of its mean class token: the mean of the projections of its frames.

        Args:
            states: States (I, M, D) of images or (I, F, M, D) of videos.

        Returns:
            L2-normalized embeddings (I, E).
        """
        engine = self.model.engine.require(Embeddings)
        return engine.embed_images(states[:, :, :1].mean(1) if states.ndim == 4 else states)

    def match_all(self, rows: Sequence[list[int]], states: Tensor) -> Tensor:
        """Match all texts with all images.

        Args:
            rows: Token ids of B texts that start with [CLS].
            states: States (I, M, D) of the images.

        Returns:
            Probabilities (I, B) of a match.
        """
        grounded = self.with_enc(rows)
        probabilities = torch.empty(len(states), len(grounded), device=states.device)
        engine = self.model.engine.require(Matches)
        images = engine.project_images(states)
        for indices in iter_similar_lengths(grounded, max(1, TEXT_ROWS // len(states))):
            ids, mask = self.model.pad([grounded[i] for i in indices])
            scores = engine.match(ids.repeat(len(states), 1), mask.repeat(len(states), 1), images)
            probabilities[:, indices] = scores.view(len(states), len(indices))
        return probabilities

    def match_logits(self, rows: Sequence[list[int]], images: Tensor | Memory) -> Tensor:
        """Return the match logits (B,), on the CPU, of texts with one image.

        Args:
            rows: Token ids of B texts that start with [ENC].
            images: The states (1, M, D) of the image, or its projected keys and values.

        Returns:
            Column 1 of the ITM logits (B, 2).

        Raises:
            InputError: The engine has no logits.
        """
        logits = torch.empty(len(rows))
        if rows:
            engine = self.model.engine.require(MatchLogits)
            memory = engine.project_images(_join_frames(images)) if isinstance(images, Tensor) else images
            for indices in iter_similar_lengths(rows, TEXT_ROWS):
                scores = engine.match_logits(*self.model.pad([rows[i] for i in indices]), memory)
                logits[indices] = scores[:, 1].cpu()
        return logits


class GroupedMatchPipeline(
    Pipeline[tuple[ImageInput, "Sequence[str]"], "list[list[int]]", "list[list[Match]]", "list[Match]"]
):
    """Scores texts of its own for each image. Items are pairs of an image and its texts.

    A result is a list with a match for each text. An image is encoded once for all its texts.

    Args:
        model: The model of the retrieval task.
    """

    def __init__(self, model: TaskModel) -> None:
        super().__init__(model)
        self.retrieval = RetrievalPipeline(model)

    def preprocess(self, item: tuple[ImageInput, Sequence[str]]) -> Prepared[list[list[int]]]:
        """Return the opened image and the token ids of its texts."""
        image, texts = item
        opened = self.model.open_image(image)
        return Prepared(opened, self.retrieval.tokenize(texts), len(texts))

    def forward(self, batch: list[Prepared[list[list[int]]]]) -> list[list[Match]]:
        """Return the matches of each image with its texts."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        texts = [ids for prepared in batch for ids in prepared.text]
        shape = len(batch), batch[0].num_texts
        embedded = self.retrieval.embed_texts(texts).view(*shape, -1)
        similarities = torch.einsum("ie,ite->it", self.retrieval.embed_images(states), embedded)
        engine, memory = self.model.engine.require(Matches), _join_frames(states)
        probabilities = torch.empty(shape)
        for images, columns, rows in iter_row_batches([prepared.text for prepared in batch], TEXT_ROWS):
            scores = engine.match(*self.model.pad(self.retrieval.with_enc(rows)), memory[images])
            probabilities[images, columns] = scores.view(probabilities[images, columns].shape).cpu()
        scores_of_images = zip(probabilities.tolist(), similarities.tolist(), strict=True)
        return [[Match(p, cosine) for p, cosine in zip(*scores, strict=True)] for scores in scores_of_images]

    def postprocess(self, raw: list[list[Match]], batch: list[Prepared[list[list[int]]]]) -> list[list[Match]]:
        """Return the matches of each image."""
        return raw


class EmbedPipeline(Pipeline[ImageInput, None, "list[Embedding]", Embedding]):
    """Embeds images and videos. A result is an array (E,), float32 and L2-normalized."""

    def preprocess(self, item: ImageInput) -> Prepared[None]:
        """Return the opened image."""
        return Prepared(self.model.open_image(item), None)

    def forward(self, batch: list[Prepared[None]]) -> list[Embedding]:
        """Return the embedding of each image."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        return list(RetrievalPipeline(self.model).embed_images(states).cpu().numpy())

    def postprocess(self, raw: list[Embedding], batch: list[Prepared[None]]) -> list[Embedding]:
        """Return the embedding of each image."""
        return raw


class TensorEmbedPipeline(Pipeline[ImageInput, None, Tensor, Tensor]):
    """Embeds images and videos. A result is a tensor (E,) on the device of the model, float32 and L2-normalized."""

    def preprocess(self, item: ImageInput) -> Prepared[None]:
        """Return the opened image."""
        return Prepared(self.model.open_image(item), None)

    def forward(self, batch: list[Prepared[None]]) -> Tensor:
        """Return the embeddings (I, E)."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        return RetrievalPipeline(self.model).embed_images(states)

    def postprocess(self, raw: Tensor, batch: list[Prepared[None]]) -> list[Tensor]:
        """Return the embedding of each image."""
        return list(raw)


class ClassifyPipeline(Pipeline[ImageInput, None, Tensor, Classification]):
    """Chooses among labels without training on them. Items are images.

    Args:
        model: The model of the retrieval task.
        labels: The labels to choose from.
        template: Text of a label, with `{}` in place of the label.
        by: `"itc"` compares embeddings; `"itm"` compares the odds of a match, which costs a pass per label.
        n: Labels per image.

    Raises:
        InputError: An option is out of range, or the template has no `{}`.
    """

    def __init__(
        self,
        model: TaskModel,
        labels: Sequence[str],
        *,
        template: str = "a picture of {}",
        by: Literal["itc", "itm"] = "itc",
        n: int = 1,
    ) -> None:
        super().__init__(model)
        if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
            raise InputError(f"labels must be a list of strings, got {labels!r}")
        if "{}" not in template:
            raise InputError(f"template must contain {{}} for the label, got {template!r}")
        if by not in ("itc", "itm"):
            raise InputError(f"by must be 'itc' or 'itm', got {by!r}")
        if not 1 <= n <= len(labels):
            raise InputError(f"n must be between 1 and the number of labels ({len(labels)}), got {n}")
        self.labels = list(labels)
        self.n = n
        self.retrieval = RetrievalPipeline(model)
        self.rows = self.retrieval.tokenize([template.replace("{}", label) for label in labels])
        self.by = by

    @cached_property
    def label_embeddings(self) -> Tensor:
        """Embeddings (L, E) of the labels, computed at the first use."""
        return self.retrieval.embed_texts(self.rows)

    def preprocess(self, item: ImageInput) -> Prepared[None]:
        """Return the opened image."""
        return Prepared(self.model.open_image(item, videos=False), None)

    def forward(self, batch: list[Prepared[None]]) -> Tensor:
        """Return the probabilities (I, L) of the labels, on the CPU."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        if self.by == "itc":
            cosines = self.retrieval.embed_images(states) @ self.label_embeddings.T.to(states.device)
            return (cosines / self.model.temperature).softmax(-1).cpu()
        scores = []
        engine = self.model.engine.require(Matches)
        for rows in iter_chunks(self.retrieval.with_enc(self.rows), max(1, TEXT_ROWS // len(states))):
            ids, mask = self.model.pad(rows)
            odds = engine.match_log_odds(ids.repeat(len(states), 1), mask.repeat(len(states), 1), states)
            scores.append(odds.view(len(states), len(rows)))
        return torch.cat(scores, 1).softmax(-1).cpu()

    def postprocess(self, raw: Tensor, batch: list[Prepared[None]]) -> list[Classification]:
        """Return the `n` most probable labels of each image."""
        best = raw.sort(dim=-1, descending=True, stable=True)
        results = []
        for probabilities, indices in zip(
            best.values[:, : self.n].tolist(), best.indices[:, : self.n].tolist(), strict=True
        ):
            ranked = [Label(self.labels[i], p) for p, i in zip(probabilities, indices, strict=True)]
            results.append(Classification(tuple(ranked)))
        return results


def _join_frames(states: Tensor) -> Tensor:
    """Return image states (I, M, D) unchanged, and video states (I, F, M, D) as (I, F * M, D)."""
    return states.flatten(1, 2) if states.ndim == 4 else states
