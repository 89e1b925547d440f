"""One loaded model at work: text to ids on the way in, ids to text on the way out, and its engine between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from openblip.checkpoints.read import Loaded
from openblip.decoding import Decoding, Hypothesis, generate_grouped
from openblip.decoding.words import (
    ForbiddenWords,
    Phrase,
    RequiredWords,
    contains_phrase,
    split_words,
    trim_function_words,
)
from openblip.engine.eager import EagerEngine
from openblip.engine.protocols import Answers, Comparisons, Embeddings, Engine, Grounding, Matches, TorchModel
from openblip.errors import InputError, UnsupportedTask
from openblip.inputs import chunks
from openblip.model.config import ModelKind
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor, whole_size
from openblip.preprocess.text import Tokenizer, clean_caption, clean_expression, clean_question
from openblip.preprocess.video import is_video, load_frames
from openblip.results import Answer, Box, Caption, Comparison, Label

CAPTION_WORDS, CAPTION_TOKENS = 30, 35  # of texts to match and embed, as in retrieval training
QUESTION_WORDS, QUESTION_TOKENS = 50, 35
STATEMENT_WORDS = 40
EXPRESSION_TOKENS = 128
TEXT_ROWS = 64  # texts or questions computed at a time
FRAME_ROWS = 64  # frames of videos encoded at a time
BOX_ROWS = 16  # expressions computed at a time: each has a memory of its image's tokens and its own


@dataclass(frozen=True)
class Prompt:
    """The ids a caption starts from; ``given`` is what the user asked for, which the text of the caption includes."""

    ids: list[int]
    given: str | None


@dataclass(frozen=True)
class Texts:
    """Cleaned texts as ids, [CLS] to [SEP]."""

    ids: list[list[int]]


class Runner:
    """One loaded model: its engine, its vocabulary and its picture size. Everything here is about one task's model."""

    def __init__(self, loaded: Loaded, engine: Engine, *, exact: bool = False) -> None:
        self.task: ModelKind = loaded.config.task
        self.config = loaded.config
        self.engine = engine
        self.image: ImageSettings = loaded.image
        self.near = None if exact else loaded.image.size
        self.default_prompt = loaded.prompt or ""
        self.temperature = float(getattr(loaded.model, "temperature", 1.0))  # of ITC, as training left it
        self._tokenizer = loaded.tokenizer

    @property
    def eager(self) -> EagerEngine:
        """The engine, for what PyTorch alone can do; :class:`InputError` if another one runs this model."""
        return cast(EagerEngine, self.engine.require(TorchModel))

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's vocabulary."""
        if self._tokenizer is None:
            raise InputError("this checkpoint came without a vocabulary: load it with tokenizer=...")
        return self._tokenizer

    # Pictures.

    def open(self, image: Any, *, videos: bool = True) -> Tensor | np.ndarray:
        """States that an :class:`EncodedImage` brings along, or resized pixels (S, S, 3) uint8.

        Of a video the states (F, M, D) or pixels (F, S, S, 3) of its frames; unless ``videos`` may come, it raises
        :class:`UnsupportedTask`.
        """
        measured, image = (image, image.image) if isinstance(image, Measured) else (None, image)
        if is_video(image):
            if not videos:
                raise _no_videos()
            return np.stack([resize(frame, self.image.size) for frame in load_frames(image, near=self.near)])
        if not isinstance(image, EncodedImage):
            picture = load_image(image, near=self.near)
            if measured:
                measured.size = whole_size(picture)
            return resize(picture, self.image.size)
        if measured:
            measured.size = image.size
        if id(self) not in image.states:
            raise InputError(
                f"this image was not encoded for {self.task}, or by another model: call encode_images again"
            )
        states = image.states[id(self)]
        if frames_of(states) and not videos:
            raise _no_videos()
        return states

    def states(self, opened: list[Tensor | np.ndarray]) -> Tensor:
        """Image states (I, M, D) in the order of ``opened``; only what is still pixels passes through the encoder.

        Of videos, which have as many frames each, they are (I, F, M, D).
        """
        fresh = [picture for picture in opened if isinstance(picture, np.ndarray)]
        encoded = iter(self._encoded(np.stack(fresh)) if fresh else ())
        return torch.stack([next(encoded) if isinstance(p, np.ndarray) else p for p in opened])

    def _encoded(self, pixels: np.ndarray) -> Tensor:
        """The states of pixels (I, S, S, 3) or (I, F, S, S, 3)."""
        if pixels.ndim == 4:
            return self.engine.encode_images(to_tensor(pixels, self.image))
        frames = to_tensor(pixels.reshape(-1, *pixels.shape[2:]), self.image)
        states = torch.cat([self.engine.encode_images(part) for part in torch.split(frames, FRAME_ROWS)])
        return states.view(*pixels.shape[:2], *states.shape[1:])

    def embed_images(self, states: Tensor) -> Tensor:
        """ITC embeddings (I, E); of a video the mean of its frames' projections, normalised.

        A projection is linear, so that of the mean class token is the mean of the projections.
        """
        return self.engine.require(Embeddings).embed_images(states[:, :, :1].mean(1) if states.ndim == 4 else states)

    # Captions.

    def prompt(self, text: str | None) -> Prompt:
        if text is not None and not isinstance(text, str):
            raise InputError(f"a prompt is a string, not {type(text).__name__}")
        ids = self.tokenizer.encode_prompt(self.default_prompt if text is None else text)
        return Prompt(self.fitting(ids), text)

    def caption(self, prompt: Prompt, found: Hypothesis) -> Caption:
        tokenizer = self.tokenizer
        text = tokenizer.decode_after(prompt.given, found.ids) if prompt.given else tokenizer.decode(found.ids)
        return Caption(text, found.logprob, found.finished)

    def captions(
        self, prompt: Prompt, found: list[Hypothesis], required: RequiredWords | None, trim: bool
    ) -> list[Caption]:
        """Captions of one image, those first that have what is required and, to ``trim``, that came to their end."""
        tokenizer = self.tokenizer
        pieces = tokenizer.vocab_pieces if required or trim else ()
        given = list(tokenizer.spell(prompt.given or "")) if required else []
        ranked = []
        for one in found:
            unmet = required is not None and not required.are_met(split_words(pieces, [*given, *one.ids]))
            ids = trim_function_words(pieces, one.ids, tokenizer.sep_id) if trim and not one.finished else one.ids
            caption = replace(self.caption(prompt, replace(one, ids=ids)), unmet=unmet)
            ranked.append((unmet, trim and not one.finished, caption))
        return [caption for *_, caption in sorted(ranked, key=lambda row: row[:2])]

    def forbidden(self, words: Sequence[str]) -> ForbiddenWords | None:
        """Words that are not to be said."""
        phrases = tuple(dict.fromkeys(self._phrase(word, "forbid") for word in _strings(words, "forbid")))
        return ForbiddenWords(self.tokenizer.vocab_pieces, phrases) if phrases else None

    def required(
        self, clauses: Sequence[str | Sequence[str]], prompt: str | Sequence[str | None] | None, forbid: Sequence[str]
    ) -> RequiredWords | None:
        """Words that are to be said, but for those that a common ``prompt`` says already."""
        if isinstance(clauses, str):
            raise InputError("require is a list of words, or of lists of alternatives")
        barred = {self._phrase(word, "forbid") for word in forbid}
        given = (
            split_words(self.tokenizer.vocab_pieces, self.tokenizer.spell(prompt)) if isinstance(prompt, str) else []
        )
        found = []
        for clause in clauses:
            words = _strings([clause] if isinstance(clause, str) else clause, "require")
            phrases = [(self._phrase(word, "require"), self.tokenizer.spell(word)) for word in words]
            if not phrases or all(phrase in barred for phrase, _ in phrases):
                raise InputError(f"require {' or '.join(words) or 'nothing'}: forbidden, or no word at all")
            if not any(contains_phrase(given, phrase) for phrase, _ in phrases):
                found.append(tuple(one for one in phrases if one[0] not in barred))
        return RequiredWords(self.tokenizer.vocab_pieces, tuple(found)) if found else None

    def _phrase(self, text: str, option: str) -> Phrase:
        ids = self.tokenizer.spell(text)
        if not ids or self.tokenizer.unk_id in ids:
            raise InputError(f"{option} {text!r}: the model's vocabulary cannot spell it")
        return tuple(split_words(self.tokenizer.vocab_pieces, ids))

    # Questions and answers.

    def question(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"a question is a string, not {type(text).__name__}")
        cleaned = clean_question(text, QUESTION_WORDS)
        return self._row(self.tokenizer.encode([cleaned], "enc", max_length=QUESTION_TOKENS))

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Candidate answers as ids, [DEC] to [SEP]; answers are taken as they are, as in training."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError("answers is a list of strings to choose from")
        return [self.fitting(self._row(self.tokenizer.encode([text], "dec"))) for text in texts]

    def free_answers(self, questions: Tensor, mask: Tensor, decoding: Decoding) -> list[list[Answer]]:
        start = self.engine.require(Answers).prepare_answers(questions, mask, decoding.capacity(1))
        prompts = [[self.tokenizer.dec_id]] * len(questions)
        found = generate_grouped(start, prompts, decoding, device=self.engine.device)
        return [[Answer(self.tokenizer.decode(h.ids), math.exp(h.logprob)) for h in hs] for hs in found]

    def ranked_answers(
        self, questions: Tensor, mask: Tensor, texts: Sequence[str], ids: list[list[int]], n: int, k: int | None,
        smoothing: float,
    ) -> list[list[Answer]]:  # fmt: skip
        scores = self.engine.require(Answers).rank_answers(questions, mask, ids, k, smoothing)
        best = scores.softmax(-1).topk(n)
        return [
            [Answer(texts[i], p) for p, i in zip(ps, js, strict=True)]
            for ps, js in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    # Texts to match and embed.

    def texts(self, texts: Sequence[str]) -> Texts:
        if not all(isinstance(text, str) for text in texts):
            raise InputError("texts are strings")
        cleaned = [clean_caption(text, CAPTION_WORDS) for text in texts]
        return Texts([self._row(self.tokenizer.encode([text], "cls", max_length=CAPTION_TOKENS)) for text in cleaned])

    def grounded(self, texts: Texts) -> list[list[int]]:
        """The ids as the image-grounded encoder reads them, [ENC] to [SEP]."""
        return [[self.tokenizer.enc_id, *ids[1:]] for ids in texts.ids]

    def embed_texts(self, texts: Texts) -> Tensor:
        """Embeddings (B, E)."""
        found = torch.empty(len(texts.ids), self.config.embed_width, device=self.engine.device)
        for places in by_length(texts.ids, TEXT_ROWS):
            found[places] = self.engine.require(Embeddings).embed_texts(*self.pad([texts.ids[i] for i in places]))
        return found

    def similarity(self, states: Tensor, texts: Tensor, *, paired: bool) -> list[list[float]]:
        """ITC cosines, a row per image, with the embeddings of all texts, or of its own."""
        scores = self.embed_images(states) @ texts.T.to(states.device)
        return (scores.diagonal()[:, None] if paired else scores).tolist()

    def probability(self, states: Tensor, texts: Texts, *, paired: bool) -> list[list[float]]:
        """ITM probabilities, a row per image: of all texts, or of its own."""
        grounded, states = self.grounded(texts), in_a_row(states)
        if paired:
            return [[p] for p in self.engine.require(Matches).match(*self.pad(grounded), states).tolist()]
        found = torch.empty(len(states), len(grounded), device=states.device)
        images = self.engine.require(Matches).project_images(states)
        for places in by_length(grounded, max(1, TEXT_ROWS // len(states))):
            ids, mask = self.pad([grounded[i] for i in places])
            each = self.engine.require(Matches).match(ids.repeat(len(states), 1), mask.repeat(len(states), 1), images)
            found[:, places] = each.view(len(states), len(places))
        return cast("list[list[float]]", found.tolist())

    def labels(self, states: Tensor, texts: Texts, embedded: Tensor | None) -> Tensor:
        """Probabilities (I, L), on the CPU, of each text being the one that fits.

        With their embeddings by ITC, as training contrasted them; without by ITM, whose odds are for each text alone.
        """
        if embedded is not None:
            scores = (
                self.engine.require(Embeddings).embed_images(states) @ embedded.T.to(states.device) / self.temperature
            )
        else:
            parts = []
            for chunk in chunks(self.grounded(texts), max(1, TEXT_ROWS // len(states))):
                ids, mask = (part.repeat(len(states), 1) for part in self.pad(chunk))
                parts.append(
                    self.engine.require(Matches).match_log_odds(ids, mask, states).view(len(states), len(chunk))
                )
            scores = torch.cat(parts, 1)
        return scores.softmax(-1).cpu()

    def best_labels(self, probabilities: Tensor, labels: Sequence[str], n: int) -> list[list[Label]]:
        """The ``n`` likeliest labels of every image, from their probabilities (I, L)."""
        best = probabilities.topk(n)
        return [
            [Label(labels[i], p) for p, i in zip(ps, js, strict=True)]
            for ps, js in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    # Statements about two pictures.

    def statement(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"a statement is a string, not {type(text).__name__}")
        return self.fitting(self._row(self.tokenizer.encode([clean_caption(text, STATEMENT_WORDS)], "enc")))

    def comparisons(self, rows: list[list[int]], first: Tensor, second: Tensor) -> list[Comparison]:
        logits = self.engine.require(Comparisons).compare_logits(*self.pad(rows), first, second)
        true = logits.softmax(-1)[:, 1].tolist()
        return [Comparison(best == 1, p) for best, p in zip(logits.argmax(-1).tolist(), true, strict=True)]

    # Expressions and their boxes.

    def expression(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"an expression is a string, not {type(text).__name__}")
        if not (cleaned := clean_expression(text)):
            raise InputError(f"the expression {text!r} has no words")
        return self.fitting(self._row(self.tokenizer.encode([cleaned], "cls", max_length=EXPRESSION_TOKENS)))

    def boxes(self, rows: list[list[int]], states: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Box]:
        """Boxes of expressions, an image's side by side; ``sizes`` are the width and height of every image."""
        shares, logprob = self.engine.require(Grounding).ground(*self.pad(rows), states)
        pixels = torch.tensor(sizes, dtype=torch.float64).repeat_interleave(len(rows) // len(sizes), 0).repeat(1, 2)
        edges: list[tuple[float, float, float, float]] = (shares.cpu().double() * pixels).tolist()
        return [Box(*place, p) for place, p in zip(edges, logprob.exp().tolist(), strict=True)]

    def pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T) of rows of ids, padded on the right."""
        ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask

    def _row(self, tokens: Any) -> list[int]:
        return cast("list[int]", tokens.ids[0].tolist())

    def fitting(self, ids: list[int]) -> list[int]:
        """The ids, unless they are more than the model has positions for."""
        if len(ids) >= self.config.text.max_positions:
            raise InputError(f"a text of {len(ids)} tokens does not fit the model's {self.config.text.max_positions}")
        return ids


def frames_of(opened: Tensor | np.ndarray) -> int:
    """How many frames a video brings, opened or as its states; 0 for a picture."""
    return len(opened) if opened.ndim == (4 if isinstance(opened, np.ndarray) else 3) else 0


def in_a_row(states: Tensor) -> Tensor:
    """Image states (I, M, D) as they are; those of videos (I, F, M, D) with all frames' tokens in a row, (I, F M, D).

    So cross-attention reads a video (Li et al. 2022, section 5.6), without a sign of which frame comes when.
    """
    return states.flatten(1, 2) if states.ndim == 4 else states


def _no_videos() -> UnsupportedTask:
    return UnsupportedTask("this takes pictures: a video can be captioned, asked about, matched and embedded")


def by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """The places of up to ``size`` rows at a time, of about one length, so that little is computed for padding."""
    return chunks(sorted(range(len(rows)), key=lambda place: len(rows[place])), size)


def _strings(given: Sequence[str], option: str) -> list[str]:
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise InputError(f"{option} is a list of words")
    return list(given)


@dataclass(eq=False)
class EncodedImage:
    """A picture or video the model has seen, made by :meth:`Blip.encode_images`: taken in its place, at no new cost."""

    states: dict[int, Tensor] = field(repr=False)
    size: tuple[int, int] | None = None  # width and height of the picture, for boxes in its pixels


class Measured:
    """A picture whose width and height are wanted too: its ``size`` is known once it was opened."""

    def __init__(self, image: Any) -> None:
        self.image = image
        self.size: tuple[int, int] | None = None

    def told(self) -> tuple[int, int]:
        """The size; :class:`InputError` if an :class:`EncodedImage` was made without it."""
        if self.size is None:
            raise InputError(
                "this encoded image does not know how large its picture is: give it a size=(width, height)"
            )
        return self.size
