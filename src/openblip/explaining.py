"""Where one task's model looked for each word: of a text that it matched, a caption, or a question it answered.

Grad-CAM (Selvaraju et al. 2017) on cross-attention to the image's patches, as LAVIS does it for matches. What is
explained is the ITM logit for "retrieval"; for each word of a caption its log-probability after the words before it;
for a question the log-probability of the answer. The words of a match and of a question are those of the
image-grounded encoder, the words of a caption those of the decoder.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.decoding import Decoding, generate_grouped
from openblip.engine.protocols import Answers, Captions, Explanations
from openblip.errors import InputError
from openblip.inputs import chunks
from openblip.preprocess.text import clean_caption
from openblip.results import Explanation
from openblip.runner import CAPTION_WORDS, Runner

Explained: TypeAlias = Literal["retrieval", "caption", "vqa"]
EXPLAINED: tuple[Explained, ...] = get_args(Explained)
ROWS = 16  # texts explained at a time: all attention is kept for the way back


class Explainer:
    """Explains what a model does with texts about one image at a time, so that no text depends on another.

    ``layer`` counts from 0; the middle one, the default, is LAVIS's 6 of 12. ``answer`` is what is explained in place
    of the model's own. Raises :class:`InputError` for a layer that is not there, or an answer where none is asked.
    """

    def __init__(self, part: Runner, of: Explained, layer: int | None = None, answer: str | None = None) -> None:
        depth = part.config.text.depth
        self.layer = depth // 2 if layer is None else layer
        if not 0 <= self.layer < depth:
            raise InputError(f"layer is one of 0 to {depth - 1}, not {layer}")
        if answer is not None and of != "vqa":
            raise InputError("an answer is explained with of='vqa'")
        self.engine = part.engine.require(Explanations)
        self.part = part
        self.of = of
        self.answer = answer

    def prepare(self, text: str | None) -> list[int]:
        """The ids that the model reads; of a caption those after the prompt, none for the model's own."""
        if self.of == "retrieval":
            return _with_words(self.part.grounded(self.part.texts([_given(text)]))[0], text)
        if self.of == "vqa":
            return _with_words(self.part.question(_given(text)), text)
        if text is None:
            return []
        tokenizer, prompt = self.part.tokenizer, self.part.prompt(None).ids
        ids = tokenizer.encode_prompt(clean_caption(_given(text), CAPTION_WORDS))[1:]
        if not ids:
            raise _wordless(text)
        return self.part.fitting([*prompt, *ids])[len(prompt) :]

    def explain(self, state: Tensor, texts: list[str | None], rows: list[list[int]]) -> list[Explanation]:
        """One explanation per text about the image with this state (1, M, D)."""
        return {"retrieval": self._matches, "caption": self._captions, "vqa": self._answers}[self.of](
            state, texts, rows
        )

    def _matches(self, state: Tensor, texts: list[str | None], rows: list[list[int]]) -> list[Explanation]:
        found = []
        for chunk in chunks(rows, ROWS):
            heat, probability = self.engine.explain_match(*self.part.pad(chunk), state, self.layer)
            found += list(zip(chunk, heat, probability.tolist(), strict=True))
        return [
            self._explanation(str(text), ids[1:-1], heat[1 : len(ids) - 1], p, start=heat[0])
            for text, (ids, heat, p) in zip(texts, found, strict=True)
        ]

    def _answers(self, state: Tensor, texts: list[str | None], rows: list[list[int]]) -> list[Explanation]:
        part, found = self.part, []
        for chunk in chunks(rows, ROWS):
            ids, mask = part.pad(chunk)
            answers = [self.answer] * len(chunk) if self.answer is not None else self._own_answers(ids, mask, state)
            heat, logprob = self.engine.explain_answers(ids, mask, state, *part.pad(part.answers(answers)), self.layer)
            found += list(zip(chunk, heat, logprob.exp().tolist(), answers, strict=True))
        return [
            self._explanation(str(text), ids[1:-1], heat[1 : len(ids) - 1], p, answer, heat[0])
            for text, (ids, heat, p, answer) in zip(texts, found, strict=True)
        ]

    def _own_answers(self, ids: Tensor, mask: Tensor, state: Tensor) -> list[str]:
        heard = self.part.engine.require(Answers).encode_questions(ids, mask, state)
        decoding = Decoding(max_new_tokens=9, eos_id=self.part.tokenizer.sep_id, pad_id=self.part.tokenizer.pad_id)
        return [answers[0].text for answers in self.part.free_answers(heard, mask, decoding)]

    def _captions(self, state: Tensor, texts: list[str | None], rows: list[list[int]]) -> list[Explanation]:
        return [self._caption(state, text, ids) for text, ids in zip(texts, rows, strict=True)]

    def _caption(self, state: Tensor, text: str | None, ids: list[int]) -> Explanation:
        """Every word is explained by itself: a row that ends before it."""
        part, prompt = self.part, self.part.prompt(None).ids
        if text is None:
            text, ids = self._own_caption(state, prompt)
        heats, logprob = [], 0.0
        for places in chunks(range(len(ids)), ROWS):
            before = [[*prompt, *ids[:place]] for place in places]
            following = torch.tensor([ids[place] for place in places])
            heat, gained = self.engine.explain_next(*part.pad(before), following, state, self.layer)
            heats.append(heat)
            logprob += gained.sum().item()
        return self._explanation(text, ids, torch.cat(heats), math.exp(logprob))

    def _own_caption(self, state: Tensor, prompt: list[int]) -> tuple[str, list[int]]:
        part, tokenizer = self.part, self.part.tokenizer
        decoding = Decoding(eos_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
        start = part.engine.require(Captions).prepare_captions(state, decoding.capacity(len(prompt)))
        ((found, *_),) = generate_grouped(start, [prompt], decoding, device=part.engine.device)
        ids = found.ids[:-1] if found.finished else found.ids
        if not ids:
            raise InputError("the model's own caption of this image is empty: give a text")
        return tokenizer.decode(ids), ids

    def _explanation(
        self,
        text: str,
        ids: list[int],
        heat: Tensor,
        probability: float,
        answer: str | None = None,
        start: Tensor | None = None,
    ) -> Explanation:
        """From the heat (T, N) of the pieces to that of the words; ``start`` (N,) is that of the first token."""
        pieces = self._squared(heat)
        words, owners = self._words(ids)
        maps = np.stack([pieces[places].mean(0) for places in owners])
        first = None if start is None else self._squared(start)
        return Explanation(text, tuple(words), maps, pieces.mean(0), probability, answer, first)

    def _squared(self, heat: Tensor) -> NDArray[np.float32]:
        grid = self.part.config.vision.grid
        return cast("NDArray[np.float32]", heat.reshape(*heat.shape[:-1], grid, grid).cpu().numpy())

    def _words(self, ids: list[int]) -> tuple[list[str], list[list[int]]]:
        """The words that pieces make up, and the places of each one's pieces."""
        words: list[str] = []
        places: list[list[int]] = []
        for place, piece in enumerate(self.part.tokenizer.pieces(ids)):
            if piece.startswith("##") and words:
                words[-1] += piece.removeprefix("##")
                places[-1].append(place)
            else:
                words.append(piece.removeprefix("##"))
                places.append([place])
        return words, places


def _with_words(ids: list[int], text: str | None) -> list[int]:
    """The ids, if there are any between the first token and [SEP]."""
    if len(ids) < 3:
        raise _wordless(text)
    return ids


def _wordless(text: str | None) -> InputError:
    return InputError(f"the text {text!r} has no words to explain")


def _given(text: str | None) -> str:
    if not isinstance(text, str):
        raise InputError("there is no text to explain" if text is None else f"a text is a string, not {text!r}")
    return text
