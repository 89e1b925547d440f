"""Explanation pipelines: an image and texts to `Explanation`.

Grad-CAM (Selvaraju et al. 2017) on the cross-attention to image patches, as in LAVIS. The explained score is the match
logit of a text to match, the log-probability of each word of a caption given the words before it, or the
log-probability of the answer to a question.

Shapes: T tokens, N patches, G patches along a side, W words, M image tokens, D width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.engine.protocols import Answers, Explanations
from openblip.errors import InputError, OpenBlipError
from openblip.io import limits
from openblip.pipelines.base import OpenedImage, Pipeline, Prepared, TaskModel, iter_chunks
from openblip.pipelines.caption import CaptionPipeline, Prompt
from openblip.pipelines.inputs import ImageInput, ImagePreview
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.pipelines.vqa import VqaPipeline
from openblip.preprocess.text import clean_caption
from openblip.results import Explanation

ExplainedTask: TypeAlias = Literal["retrieval", "caption", "vqa"]
EXPLAINED_TASKS: tuple[ExplainedTask, ...] = get_args(ExplainedTask)
ROWS = 16  # most texts in one backward pass, which keeps all attention weights
MAX_WORDS = 30  # of a caption


@dataclass(frozen=True)
class ExplainedTexts:
    """The texts about an image with their token ids, and the preview of the image."""

    texts: list[str | None]
    rows: list[list[int]]
    preview: ImagePreview | None


class ExplainPipeline(
    Pipeline[
        tuple[ImageInput, "Sequence[str | None]"],
        ExplainedTexts,
        "list[list[Explanation] | OpenBlipError]",
        "list[Explanation]",
    ]
):
    """Explains texts about images. Items are pairs of an image and its texts.

    A result is a list with an explanation for each text. Each image runs by itself.

    Args:
        model: The model of the task.
        layer: Text layer whose cross-attention is explained, from 0; by default the middle one, 6 of 12 as in LAVIS.

    Raises:
        InputError: The layer does not exist, or the engine computes no gradients.
    """

    def __init__(self, model: TaskModel, *, layer: int | None = None) -> None:
        super().__init__(model)
        depth = model.config.text.depth
        self.layer = depth // 2 if layer is None else layer
        if not 0 <= self.layer < depth:
            raise InputError(f"layer must be between 0 and {depth - 1}, got {layer}")
        self.engine = model.engine.require(Explanations)

    @abstractmethod
    def tokenize(self, text: str | None) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text; `None` for the model's own, where there is one.

        Returns:
            The token ids.

        Raises:
            InputError: The text is missing or has no words.
        """

    @abstractmethod
    def explain(self, text: ExplainedTexts, state: Tensor) -> list[Explanation]:
        """Explain texts about one image.

        Args:
            text: The texts with their token ids.
            state: States (1, M, D) of the image.

        Returns:
            One explanation per text.
        """

    def preprocess(self, item: tuple[ImageInput, Sequence[str | None]]) -> Prepared[ExplainedTexts]:
        """Return the opened image and the token ids of the texts."""
        image, texts = item
        opened = self.model.open_image(image, videos=False)
        rows = [self.tokenize(text) for text in texts]
        return Prepared(opened, ExplainedTexts(list(texts), rows, self.model.preview(image, opened)), len(rows))

    def forward(self, batch: list[Prepared[ExplainedTexts]]) -> list[list[Explanation] | OpenBlipError]:
        """Return the explanations of each image, or its error."""
        results: list[list[Explanation] | OpenBlipError] = []
        states = self.model.encode_images([prepared.image for prepared in batch])
        for state, prepared in zip(states, batch, strict=True):
            limits.check()
            try:
                results.append(self.explain(prepared.text, state[None]))
            except OpenBlipError as error:
                results.append(error)
        return results

    def postprocess(
        self, raw: list[list[Explanation] | OpenBlipError], batch: list[Prepared[ExplainedTexts]]
    ) -> list[list[Explanation] | OpenBlipError]:
        """Return the explanations of each image."""
        return raw

    def build(
        self,
        text: str,
        ids: list[int],
        heat: Tensor,
        probability: float,
        preview: ImagePreview | None,
        *,
        answer: str | None = None,
        start: Tensor | None = None,
    ) -> Explanation:
        """Return the explanation of a text.

        Args:
            text: The text.
            ids: Token ids of its T word pieces.
            heat: Heat (T, N) of the word pieces.
            probability: The explained probability.
            preview: Preview of the image.
            answer: The explained answer of a question.
            start: Heat (N,) of the first token.

        Returns:
            The explanation, with the pieces of each word averaged.
        """
        pieces = self._grid(heat)
        words, owners = self._words(ids)
        maps = np.stack([pieces[indices].mean(0) for indices in owners])
        start_map = None if start is None else self._grid(start)
        return Explanation(text, tuple(words), maps, pieces.mean(0), probability, answer, start_map, preview)

    def _grid(self, heat: Tensor) -> NDArray[np.float32]:
        """Return heat (..., N) as maps (..., G, G)."""
        grid = self.model.config.vision.grid
        return cast("NDArray[np.float32]", heat.reshape(*heat.shape[:-1], grid, grid).cpu().numpy())

    def _words(self, ids: list[int]) -> tuple[list[str], list[list[int]]]:
        """Return the words of word pieces, and the indices of the pieces of each word."""
        words: list[str] = []
        owners: list[list[int]] = []
        for index, piece in enumerate(self.model.tokenizer.pieces(ids)):
            if piece.startswith("##") and words:
                words[-1] += piece.removeprefix("##")
                owners[-1].append(index)
            else:
                words.append(piece.removeprefix("##"))
                owners.append([index])
        return words, owners


class ExplainMatchPipeline(ExplainPipeline):
    """Explains the match logit of texts."""

    def __init__(self, model: TaskModel, *, layer: int | None = None) -> None:
        super().__init__(model, layer=layer)
        self.retrieval = RetrievalPipeline(model)

    def tokenize(self, text: str | None) -> list[int]:
        """Return the token ids of a text to match, from [ENC] to [SEP]."""
        return _check_words(self.retrieval.with_enc(self.retrieval.tokenize([_check_text(text)]))[0], text)

    def explain(self, text: ExplainedTexts, state: Tensor) -> list[Explanation]:
        """Return the explanations of texts to match."""
        results = []
        for chunk in iter_chunks(zip(text.texts, text.rows, strict=True), ROWS):
            rows = [ids for _, ids in chunk]
            heats, probabilities = self.engine.explain_match(*self.model.pad(rows), state, self.layer)
            for (words, ids), heat, p in zip(chunk, heats, probabilities.tolist(), strict=True):
                pieces = slice(1, len(ids) - 1)
                results.append(self.build(str(words), ids[pieces], heat[pieces], p, text.preview, start=heat[0]))
        return results


class ExplainAnswerPipeline(ExplainPipeline):
    """Explains the log-probability of answers.

    Args:
        model: The model of the VQA task.
        layer: Text layer whose cross-attention is explained.
        answer: The answer to explain; by default the model's own.
    """

    def __init__(self, model: TaskModel, *, layer: int | None = None, answer: str | None = None) -> None:
        super().__init__(model, layer=layer)
        self.vqa = VqaPipeline(model)
        self.answer = answer

    def tokenize(self, text: str | None) -> list[int]:
        """Return the token ids of a question, from [ENC] to [SEP]."""
        return _check_words(self.vqa.tokenize_question(_check_text(text)), text)

    def explain(self, text: ExplainedTexts, state: Tensor) -> list[Explanation]:
        """Return the explanations of questions."""
        results = []
        for chunk in iter_chunks(zip(text.texts, text.rows, strict=True), ROWS):
            ids, mask = self.model.pad([row for _, row in chunk])
            answers = [self.answer or ""] * len(chunk)
            if self.answer is None:
                questions = self.model.engine.require(Answers).encode_questions(ids, mask, state)
                answers = [answer.text for answer in self.vqa.generate(questions, mask)]
            answer_ids = self.model.pad(self.vqa.tokenize_answers(answers))
            heats, logprobs = self.engine.explain_answers(ids, mask, state, *answer_ids, self.layer)
            for (question, row), heat, p, answer in zip(chunk, heats, logprobs.exp().tolist(), answers, strict=True):
                pieces = slice(1, len(row) - 1)
                results.append(
                    self.build(str(question), row[pieces], heat[pieces], p, text.preview, answer=answer, start=heat[0])
                )
        return results


class ExplainCaptionPipeline(ExplainPipeline):
    """Explains the log-probability of each word of captions; a text of `None` is the model's own caption."""

    def __init__(self, model: TaskModel, *, layer: int | None = None) -> None:
        super().__init__(model, layer=layer)
        self.captions = CaptionPipeline(model)
        self.prompt = model.check_length(model.tokenizer.encode_prompt(model.prompt))

    def tokenize(self, text: str | None) -> list[int]:
        """Return the token ids of a caption after the prompt; none for the model's own caption."""
        if text is None:
            return []
        ids = self.model.tokenizer.encode_prompt(clean_caption(_check_text(text), MAX_WORDS))[1:]
        if not ids:
            raise InputError(f"a text to explain must contain words, got {text!r}")
        return self.model.check_length([*self.prompt, *ids])[len(self.prompt) :]

    def explain(self, text: ExplainedTexts, state: Tensor) -> list[Explanation]:
        """Return the explanations of captions. Each word has a row, which ends before it."""
        results = []
        for caption, ids in zip(text.texts, text.rows, strict=True):
            if caption is None:
                caption, ids = self._caption(state)
            heats, logprob = [], 0.0
            for indices in iter_chunks(range(len(ids)), ROWS):
                rows = [[*self.prompt, *ids[:index]] for index in indices]
                following = torch.tensor([ids[index] for index in indices])
                heat, gains = self.engine.explain_next(*self.model.pad(rows), following, state, self.layer)
                heats.append(heat)
                logprob += gains.sum().item()
            results.append(self.build(caption, ids, torch.cat(heats), math.exp(logprob), text.preview))
        return results

    def _caption(self, state: Tensor) -> tuple[str, list[int]]:
        """Return the model's own caption and its token ids."""
        prepared = Prepared(OpenedImage(state[0]), Prompt(self.prompt, None))
        hypothesis = self.captions.forward([prepared])[0][0]
        ids = hypothesis.ids[:-1] if hypothesis.finished else hypothesis.ids
        if not ids:
            raise InputError("the model's own caption of this image is empty: pass a text")
        return self.model.tokenizer.decode(ids), ids


def _check_text(text: str | None) -> str:
    if text is None:
        raise InputError("a match or an answer needs a text to explain; task='caption' explains the model's caption")
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, got {text!r}")
    return text


def _check_words(ids: list[int], text: str | None) -> list[int]:
    """Return the ids; raise `InputError` if there is none between the first token and [SEP]."""
    if len(ids) < 3:
        raise InputError(f"a text to explain must contain words, got {text!r}")
    return ids
