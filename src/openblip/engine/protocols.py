"""Capabilities of an engine: one small protocol per use of a model.

An engine runs one model on one device. `Engine` is common to all of them; each other protocol below names the
methods that a pipeline needs, and an engine supports those that its model and its implementation offer:

>>> engine.supports(Explanations)  # doctest: +SKIP
False
>>> engine.require(Captions).prepare_captions(states, capacity=20)  # doctest: +SKIP

Engines keep no state between calls, so threads may share one. Pixels are normalized float32; token ids and masks are
int64 on any device; scores and embeddings are float32.

Shapes: I images, Q questions, B texts, T tokens, M image tokens (patches + class token), N patches, D_v width of image
tokens, D width of the text transformer, E embedding width. Where B texts belong to I images, the B / I texts of each
image are adjacent rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from openblip.decoding.protocol import SessionFactory
from openblip.model.text import Memory

CapabilityT = TypeVar("CapabilityT")


class Engine(Protocol):
    """A model on a device: encodes images, and reports what else it supports.

    Attributes:
        name: Name of the engine, as in `openblip.load(engine=...)`.
        device: Device of the results.
    """

    name: str
    device: torch.device

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the image states (I, M, D_v) of pixels (I, 3, S, S)."""
        ...

    def supports(self, capability: type[object]) -> bool:
        """Return whether this engine, with its model, implements a protocol of this module."""
        ...

    def require(self, capability: type[CapabilityT]) -> CapabilityT:
        """Return this engine, typed as a protocol of this module.

        Raises:
            InputError: The engine does not support the protocol.
        """
        ...


class Captions(Engine, Protocol):
    """Captioning (paper section 5.2)."""

    def prepare_captions(self, states: Tensor, capacity: int) -> SessionFactory:
        """Project image states (I, M, D_v) once, and return a factory of decoding sessions over these images.

        Args:
            states: Image states.
            capacity: Maximum number of tokens in a row, prompt included.
        """
        ...


class ImageMemory(Engine, Protocol):
    """Cross-attention keys and values of images, computed once for any number of texts."""

    def project_images(self, states: Tensor) -> Memory:
        """Return the cross-attention keys and values of image states (I, M, D_v)."""
        ...


class Answers(ImageMemory, Protocol):
    """Visual question answering (paper section 5.3)."""

    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the states (Q, T, D) of questions about images.

        Args:
            ids: Questions (Q, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (Q, T).
            images: Image states, or the result of `project_images`.
        """
        ...

    def prepare_answers(self, questions: Tensor, mask: Tensor, capacity: int) -> SessionFactory:
        """Project question states (Q, T, D) once, and return a factory of decoding sessions over these questions."""
        ...

    def rank_answers(
        self,
        questions: Tensor,
        mask: Tensor,
        candidates: Sequence[Sequence[int]],
        shortlist: int | None,
        smoothing: float,
    ) -> Tensor:
        """Return the log-probabilities (Q, candidates) of complete answers.

        Args:
            questions: Question states (Q, T, D).
            mask: 1 for tokens, 0 for padding (Q, T).
            candidates: Answers, from [DEC] to [SEP].
            shortlist: Number of answers to score per question, chosen by their first token; the others get minus
                infinity. `None` scores all.
            smoothing: Label smoothing of the score.
        """
        ...


class Embeddings(Engine, Protocol):
    """Embeddings for image-text contrast (ITC; paper section 3.2)."""

    def embed_images(self, states: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (I, E) of image states."""
        ...

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (B, E) of texts (B, T), whose first token is [CLS]."""
        ...


class Matches(ImageMemory, Protocol):
    """Image-text matching (ITM; paper section 3.2) of texts whose first token is [ENC]."""

    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the probability (B,) that text and image match."""
        ...

    def match_log_odds(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the logarithm of p / (1 - p), (B,), for the probability p that text and image match."""
        ...


class MatchLogits(Matches, Protocol):
    """The classifier of image-text matching before its softmax, which the published retrieval scores are made of."""

    def match_logits(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the ITM logits (B, 2); column 1 is "match"."""
        ...


class Dialogs(MatchLogits, Protocol):
    """Matching of dialogs with an image and its caption (paper section 5.5)."""

    def project_captioned_images(self, states: Tensor, ids: Tensor, mask: Tensor) -> Memory:
        """Return the cross-attention keys and values of images followed by their captions.

        Args:
            states: Image states (I, M, D_v).
            ids: Captions (I, T), the first token [CLS].
            mask: 1 for tokens, 0 for padding (I, T).
        """
        ...


class Comparisons(Engine, Protocol):
    """Statements about pairs of images (NLVR2; paper section 5.4)."""

    def compare_logits(self, ids: Tensor, mask: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return the logits (B, classes) of statements about I pairs of images; class 1 is "true".

        Args:
            ids: Statements (B, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (B, T).
            left: States of the left image of each pair (I, M, D_v).
            right: States of the right image of each pair (I, M, D_v).
        """
        ...


class Grounding(Engine, Protocol):
    """Boxes of expressions, as in mmpretrain's RefCOCO model."""

    def ground(self, ids: Tensor, mask: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, 4) of expressions and their log-probabilities (B,).

        Args:
            ids: Expressions (B, T), the first token [CLS].
            mask: 1 for tokens, 0 for padding (B, T).
            states: Image states (I, M, D_v).

        Returns:
            Left, top, right and bottom edge as fractions of the image size; log-probability of the box.
        """
        ...


class Explanations(Engine, Protocol):
    """Grad-CAM maps over the patches of one image (Selvaraju et al. 2017), as LAVIS computes them for ITM.

    A map is the cross-attention of `layer` times the positive part of its gradient, averaged over heads. Each method
    needs the matching capability: `Matches`, `Captions` or `Answers`.
    """

    def explain_match(self, ids: Tensor, mask: Tensor, states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return maps (B, T, N) of evidence for a match, and the probability (B,) of a match.

        Args:
            ids: Texts about one image (B, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (B, T).
            states: Image states (1, M, D_v).
            layer: Index of the text layer, from 0.
        """
        ...

    def explain_next(
        self, ids: Tensor, mask: Tensor, following: Tensor, states: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return maps (B, N) of evidence for the next token of captions, and its log-probability (B,).

        Args:
            ids: Beginnings of captions of one image (B, T), the first token [DEC].
            mask: 1 for tokens, 0 for padding (B, T).
            following: Next token of each caption (B,).
            states: Image states (1, M, D_v).
            layer: Index of the text layer, from 0.
        """
        ...

    def explain_answers(
        self, ids: Tensor, mask: Tensor, states: Tensor, answers: Tensor, answers_mask: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return maps (Q, T, N) of evidence for answers to questions, and the log-probabilities (Q,) of the answers.

        Args:
            ids: Questions about one image (Q, T), the first token [ENC].
            mask: 1 for tokens, 0 for padding (Q, T).
            states: Image states (1, M, D_v).
            answers: Answers (Q, T'), from [DEC] to [SEP].
            answers_mask: 1 for tokens, 0 for padding (Q, T').
            layer: Index of the text layer, from 0.
        """
        ...


class TorchModel(Engine, Protocol):
    """Direct access to the PyTorch model, for the drop-in APIs and for tests.

    Attributes:
        model: The model, on `device` and in `dtype`.
        dtype: Floating-point type of the weights.
    """

    model: Any
    dtype: torch.dtype

    def to(self, device: torch.device) -> Engine:
        """Move the model, and return an engine for it on `device`."""
        ...
