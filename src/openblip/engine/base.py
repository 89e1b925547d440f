"""What every engine can do for the models above it, and the errors for what one of them cannot.

Shapes: I images, Q questions, B texts, T tokens, M image tokens, D width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from openblip.decoding.protocol import Session
from openblip.model.text import Memory

StartSession = Callable[[list[int]], Session]


class Engine(Protocol):
    """A model at work. It keeps no state between calls, so threads may share it.

    Pictures go in as normalised float32 pixels; ids and masks as int64 on any device. Scores come out in float32. Where
    ``images`` are asked for, their states do, or what :meth:`read` made of them.
    """

    device: torch.device

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image states (I, M, D_v) of pixels (I, 3, S, S)."""
        ...

    def captioning(self, states: Tensor, capacity: int) -> StartSession:
        """Sessions that describe images, given their states; cross-attention is projected here, once per image."""
        ...

    def read(self, states: Tensor) -> Memory:
        """Cross-attention keys and values of image states, for any number of questions or texts to match."""
        ...

    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Question states (Q, T, D); an image's questions lie side by side, as many for each of the I images."""
        ...

    def answering(self, questions: Tensor, mask: Tensor, capacity: int) -> StartSession:
        """Sessions that answer questions, given their states (Q, T, D) and mask (Q, T)."""
        ...

    def rank_answers(
        self, questions: Tensor, mask: Tensor, candidates: Sequence[Sequence[int]], k: int | None, smoothing: float
    ) -> Tensor:
        """Log-probabilities (Q, candidates) of whole answers; -inf for those that a shortlist of ``k`` leaves out."""
        ...

    def embed_images(self, states: Tensor) -> Tensor:
        """L2-normalised embeddings (I, E), float32."""
        ...

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """L2-normalised embeddings (B, E), float32, of texts whose first token is [CLS]."""
        ...

    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Probability (B,) that text and image match; an image's texts ([ENC] first) lie side by side, B / I each."""
        ...
