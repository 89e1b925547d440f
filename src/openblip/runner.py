"""One loaded model at work: text to ids on the way in, ids to text on the way out, and its engine between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from openblip.checkpoints.read import Loaded
from openblip.decoding import Decoding, Hypothesis, generate_grouped
from openblip.decoding.words import Forbidden, Phrase, Required, says, split, trimmed
from openblip.engine.eager import EagerEngine
from openblip.errors import InputError
from openblip.inputs import chunks
from openblip.model.config import Task
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from openblip.preprocess.text import Tokenizer, clean_caption, clean_question
from openblip.results import Answer, Caption

CAPTION_WORDS, CAPTION_TOKENS = 30, 35  # of texts to match and embed, as in retrieval training
QUESTION_WORDS, QUESTION_TOKENS = 50, 35
TEXT_ROWS = 64  # texts or questions computed at a time


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

    def __init__(self, loaded: Loaded, engine: EagerEngine) -> None:
        self.task: Task = loaded.config.task
        self.config = loaded.config
        self.engine = engine
        self.image: ImageSettings = loaded.image
        self.default_prompt = loaded.prompt or ""
        self._tokenizer = loaded.tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's vocabulary."""
        if self._tokenizer is None:
            raise InputError("this checkpoint came without a vocabulary: load it with tokenizer=...")
        return self._tokenizer

    # Pictures.

    def open(self, image: Any) -> Tensor | np.ndarray:
        """States that an :class:`EncodedImage` brings along, or resized pixels (S, S, 3) uint8."""
        if not isinstance(image, EncodedImage):
            return resize(load_image(image), self.image.size)
        if id(self) not in image.states:
            raise InputError(
                f"this image was not encoded for {self.task}, or by another model: call encode_images again"
            )
        return image.states[id(self)]

    def states(self, opened: list[Tensor | np.ndarray]) -> Tensor:
        """Image states (I, M, D) in the order of ``opened``; only what is still pixels passes through the encoder."""
        fresh = [picture for picture in opened if isinstance(picture, np.ndarray)]
        encoded = iter(self.engine.encode_images(to_tensor(np.stack(fresh), self.image)) if fresh else ())
        return torch.stack([next(encoded) if isinstance(p, np.ndarray) else p for p in opened])

    # Captions.

    def prompt(self, text: str | None) -> Prompt:
        if text is not None and not isinstance(text, str):
            raise InputError(f"a prompt is a string, not {type(text).__name__}")
        ids = self.tokenizer.encode_prompt(self.default_prompt if text is None else text)
        return Prompt(self._fitting(ids), text)

    def caption(self, prompt: Prompt, found: Hypothesis) -> Caption:
        tokenizer = self.tokenizer
        text = tokenizer.decode_after(prompt.given, found.ids) if prompt.given else tokenizer.decode(found.ids)
        return Caption(text, found.logprob, found.finished)

    def captions(self, prompt: Prompt, found: list[Hypothesis], required: Required | None, trim: bool) -> list[Caption]:
        """Captions of one image, those first that have what is required and, to ``trim``, that came to their end."""
        tokenizer = self.tokenizer
        pieces = tokenizer.vocab_pieces if required or trim else ()
        given = list(tokenizer.spell(prompt.given or "")) if required else []
        ranked = []
        for one in found:
            unmet = required is not None and not required.met(split(pieces, [*given, *one.ids]))
            ids = trimmed(pieces, one.ids, tokenizer.sep_id) if trim and not one.finished else one.ids
            caption = replace(self.caption(prompt, replace(one, ids=ids)), unmet=unmet)
            ranked.append((unmet, trim and not one.finished, caption))
        return [caption for *_, caption in sorted(ranked, key=lambda row: row[:2])]

    def forbidden(self, words: Sequence[str]) -> Forbidden | None:
        """Words that are not to be said."""
        phrases = tuple(dict.fromkeys(self._phrase(word, "forbid") for word in _strings(words, "forbid")))
        return Forbidden(self.tokenizer.vocab_pieces, phrases) if phrases else None

    def required(
        self, clauses: Sequence[str | Sequence[str]], prompt: str | Sequence[str | None] | None, forbid: Sequence[str]
    ) -> Required | None:
        """Words that are to be said, but for those that a common ``prompt`` says already."""
        if isinstance(clauses, str):
            raise InputError("require is a list of words, or of lists of alternatives")
        barred = {self._phrase(word, "forbid") for word in forbid}
        given = split(self.tokenizer.vocab_pieces, self.tokenizer.spell(prompt)) if isinstance(prompt, str) else []
        found = []
        for clause in clauses:
            words = _strings([clause] if isinstance(clause, str) else clause, "require")
            phrases = [(self._phrase(word, "require"), self.tokenizer.spell(word)) for word in words]
            if not phrases or all(phrase in barred for phrase, _ in phrases):
                raise InputError(f"require {' or '.join(words) or 'nothing'}: forbidden, or no word at all")
            if not any(says(given, phrase) for phrase, _ in phrases):
                found.append(tuple(one for one in phrases if one[0] not in barred))
        return Required(self.tokenizer.vocab_pieces, tuple(found)) if found else None

    def _phrase(self, text: str, option: str) -> Phrase:
        ids = self.tokenizer.spell(text)
        if not ids or self.tokenizer.unk_id in ids:
            raise InputError(f"{option} {text!r}: the model's vocabulary cannot spell it")
        return tuple(split(self.tokenizer.vocab_pieces, ids))

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
        return [self._fitting(self._row(self.tokenizer.encode([text], "dec"))) for text in texts]

    def free_answers(self, questions: Tensor, mask: Tensor, decoding: Decoding) -> list[list[Answer]]:
        start = self.engine.answering(questions, mask, decoding.capacity(1))
        prompts = [[self.tokenizer.dec_id]] * len(questions)
        found = generate_grouped(start, prompts, decoding, device=self.engine.device)
        return [[Answer(self.tokenizer.decode(h.ids), math.exp(h.logprob)) for h in hs] for hs in found]

    def ranked_answers(
        self, questions: Tensor, mask: Tensor, texts: Sequence[str], ids: list[list[int]], n: int, k: int | None,
        smoothing: float,
    ) -> list[list[Answer]]:  # fmt: skip
        scores = self.engine.rank_answers(questions, mask, ids, k, smoothing)
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

    def embed_texts(self, texts: Texts) -> Tensor:
        """Embeddings (B, E)."""
        parts = [self.engine.embed_texts(*self.pad(chunk)) for chunk in chunks(texts.ids, TEXT_ROWS)]
        return torch.cat(parts) if parts else torch.empty(0, self.config.embed_width)

    def similarity(self, states: Tensor, texts: Texts, *, paired: bool) -> list[list[float]]:
        """ITC cosines, a row per image: of all texts, or of its own."""
        scores = self.engine.embed_images(states) @ self.embed_texts(texts).T.to(states.device)
        return (scores.diagonal()[:, None] if paired else scores).tolist()

    def probability(self, states: Tensor, texts: Texts, *, paired: bool) -> list[list[float]]:
        """ITM probabilities, a row per image: of all texts, or of its own."""
        grounded = [[self.tokenizer.enc_id, *ids[1:]] for ids in texts.ids]
        if paired:
            return [[p] for p in self.engine.match(*self.pad(grounded), states).tolist()]
        parts = []
        for chunk in chunks(grounded, max(1, TEXT_ROWS // len(states))):
            ids, mask = self.pad(chunk)
            each = self.engine.match(ids.repeat(len(states), 1), mask.repeat(len(states), 1), states)
            parts.append(each.view(len(states), len(chunk)))
        return cast("list[list[float]]", torch.cat(parts, 1).tolist() if parts else [[]] * len(states))

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

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) >= self.config.text.max_positions:
            raise InputError(f"a text of {len(ids)} tokens does not fit the model's {self.config.text.max_positions}")
        return ids


def _strings(given: Sequence[str], option: str) -> list[str]:
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise InputError(f"{option} is a list of words")
    return list(given)


@dataclass(eq=False)
class EncodedImage:
    """A picture the model has seen, made by :meth:`Blip.encode_images`: taken wherever a picture is, at no new cost."""

    states: dict[int, Tensor] = field(repr=False)
