"""The reference engine: plain PyTorch, the same modules that training uses.

Shapes: I images, Q questions, B texts, T tokens, M = N + 1 image tokens, D width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.decoding.protocol import Session
from openblip.decoding.rank import rank_answers
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.model.text import Cache, LanguageHead, Memory, TextTransformer

StartSession = Callable[[list[int]], Session]


class EagerEngine:
    """A model on a device, in a precision. It keeps no state between calls, so threads may share it.

    Pictures go in as normalised float32 pixels; ids and masks as int64 on any device. Scores come out in float32.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image states (I, M, D_v) of pixels (I, 3, S, S)."""
        return cast(Tensor, self.model.encode_image(pixels.to(self.device, self.dtype)))

    @torch.inference_mode()
    def captioning(self, states: Tensor, capacity: int) -> StartSession:
        """Sessions that describe images, given their states; cross-attention is projected here, once per image."""
        model = cast("Captioner | Pretrainer", self.model)
        text = model.text if isinstance(model, Pretrainer) else model.decoder
        return _sessions(text, model.lm_head, text.project(states), capacity)

    @torch.inference_mode()
    def encode_questions(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        """Question states (Q, T, D); an image's questions lie side by side, as many for each of the I images."""
        model = cast(Answerer, self.model)
        return model.encode_question(ids.to(self.device), mask.to(self.device), states)

    @torch.inference_mode()
    def answering(self, questions: Tensor, mask: Tensor, capacity: int) -> StartSession:
        """Sessions that answer questions, given their states (Q, T, D) and mask (Q, T)."""
        model = cast(Answerer, self.model)
        memory = model.decoder.project(questions, mask.to(self.device))
        return _sessions(model.decoder, model.lm_head, memory, capacity)

    @torch.inference_mode()
    def rank_answers(
        self, questions: Tensor, mask: Tensor, candidates: Sequence[Sequence[int]], k: int | None, smoothing: float
    ) -> Tensor:
        """Log-probabilities (Q, candidates) of whole answers; -inf for those that a shortlist of ``k`` leaves out."""
        model = cast(Answerer, self.model)
        memory = model.decoder.project(questions, mask.to(self.device))
        return rank_answers(model.decoder, model.lm_head, memory, candidates, k=k, smoothing=smoothing)

    @torch.inference_mode()
    def embed_images(self, states: Tensor) -> Tensor:
        """L2-normalised embeddings (I, E), float32."""
        return _unit(cast(Matcher, self.model).embed_image(states))

    @torch.inference_mode()
    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """L2-normalised embeddings (B, E), float32, of texts whose first token is [CLS]."""
        return _unit(cast(Matcher, self.model).embed_text(ids.to(self.device), mask.to(self.device)))

    @torch.inference_mode()
    def match(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        """Probability (B,) that text and image match; an image's texts ([ENC] first) lie side by side, B / I each."""
        logits = cast(Matcher, self.model).match_logits(ids.to(self.device), mask.to(self.device), states)
        return logits.float().softmax(-1)[:, 1]


class EagerSession:
    """One decoding run of a text transformer and its language head (:class:`openblip.decoding.protocol.Session`).

    ``memory`` holds the items; ``None`` decodes without anything to read and needs ``items``. ``capacity`` is the most
    tokens that will be fed to a row.
    """

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        capacity: int,
        items: int | None = None,
    ) -> None:
        self.text = text
        self.head = head
        self.memory = memory
        self.width = 1
        rows = memory.items if memory is not None else items or 1
        self.cache = Cache(text.config, rows, capacity, like=text.embeddings.norm.weight)

    def step(self, ids: Tensor) -> Tensor:
        states = self.text.step(ids, self.memory, self.cache)
        return self.head(states[:, -1], self.text.embeddings.word).float()

    def widen(self, width: int) -> None:
        items = self.cache.keys.shape[1]
        self.cache.select(torch.arange(items, device=self.cache.keys.device).repeat_interleave(width))
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        self.cache.select(rows)

    def keep(self, items: Tensor) -> None:
        offsets = torch.arange(self.width, device=items.device)
        self.cache.select((items[:, None] * self.width + offsets).flatten())
        if self.memory is not None:
            self.memory = self.memory.select(items)


def _sessions(text: TextTransformer, head: LanguageHead, memory: Memory, capacity: int) -> StartSession:
    def start(items: list[int]) -> Session:
        every = items == list(range(memory.items))
        chosen = memory if every else memory.select(torch.tensor(items, device=text.device))
        return EagerSession(text, head, chosen, capacity)

    return start


def _unit(embeddings: Tensor) -> Tensor:
    # Normalised again, because a half-precision norm is off by more than float32 users expect.
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)
