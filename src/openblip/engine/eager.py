"""The reference engine: plain PyTorch, running the same modules that training uses.

Shapes: I images, Q questions, B texts, T tokens, M = N + 1 image tokens, D width, E embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from openblip.decoding.boxes import COORDINATES, decode_boxes
from openblip.decoding.protocol import Session, SessionFactory
from openblip.decoding.rank import TorchPackedDecoder, rank_answers
from openblip.engine.base import BaseEngine
from openblip.engine.int8 import Int8Linear
from openblip.engine.protocols import (
    Answers,
    Captions,
    Comparisons,
    Dialogs,
    Embeddings,
    Engine,
    Explanations,
    Grounding,
    ImageMemory,
    Matches,
    MatchLogits,
    TorchModel,
)
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.config import VisionConfig
from openblip.model.grounder import Grounder
from openblip.model.layers import Trace
from openblip.model.matcher import Matcher
from openblip.model.packing import Packing
from openblip.model.pretrainer import Pretrainer
from openblip.model.text import Cache, LanguageHead, Memory, TextTransformer

P = ParamSpec("P")
R = TypeVar("R")

# What each model offers in PyTorch.
CAPABILITIES: dict[type[nn.Module], tuple[type[object], ...]] = {
    Captioner: (Captions, Explanations),
    Answerer: (ImageMemory, Answers, Explanations),
    Matcher: (ImageMemory, Embeddings, Matches, MatchLogits, Dialogs, Explanations),
    Pretrainer: (ImageMemory, Embeddings, Matches, MatchLogits, Dialogs, Explanations, Captions),
    Comparer: (Comparisons,),
    Grounder: (Grounding,),
}


# Bytes of the largest activation of the image encoder's blocks on a CPU. The C library requests the memory of larger
# ones from the system each time. Measured on AMD without AMX: 8 images of ViT-B in fp32 take 0.84 of the time.
_MOST_BYTES = 24 << 20


def _inference(method: Callable[Concatenate[EagerEngine, P], R]) -> Callable[Concatenate[EagerEngine, P], R]:
    """Run a method of the engine without autograd and, on a CPU, with packed weights."""

    @functools.wraps(method)
    def run(self: EagerEngine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(), self.packing.active(self.model):
            return method(self, *args, **kwargs)

    return run


class EagerEngine(BaseEngine):
    """A PyTorch model on a device, in a precision.

    The methods implement the protocols of [`protocols`][openblip.engine.protocols], which document them; which of the
    protocols are supported depends on the model.

    Args:
        model: A model of `openblip.model`; it is moved and put into evaluation mode in place.
        device: Device to run on.
        dtype: Floating-point type to run in.
    """

    name = "torch"

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.model: Any = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.dtype = dtype
        self.packing = Packing()
        offered: set[type[object]] = {TorchModel}
        for base in type(model).__mro__:
            offered.update(CAPABILITIES.get(base, ()))
        if any(isinstance(module, Int8Linear) for module in model.modules()):
            offered.discard(Explanations)
        super().__init__(device, frozenset(offered))

    def to(self, device: torch.device) -> Engine:
        """Move the model, and return an engine for it on `device`."""
        return EagerEngine(self.model, device, self.dtype)

    def _start_sessions(
        self, text: TextTransformer, head: LanguageHead, memory: Memory, capacity: int
    ) -> SessionFactory:
        def start(items: list[int]) -> Session:
            return EagerSession(text, head, memory.subset(items), capacity, packing=self.packing)

        return start

    def _remedy(self, capability: type[object]) -> str:
        if capability is Explanations and Explanations in CAPABILITIES.get(type(self.model), ()):
            return "8-bit layers have no gradients; load the model with precision='fp32'"
        return f"{type(self.model).__name__} is not a model for it"

    @_inference
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the image states (I, M, D_v) of pixels (I, 3, S, S)."""
        pixels = pixels.to(self.device, self.dtype)
        if self.device.type != "cpu":
            return cast(Tensor, self.model.encode_image(pixels))
        parts = torch.split(pixels, _images_at_once(self.model.vision.config, self.dtype))
        return torch.cat([self.model.encode_image(part) for part in parts])

    @_inference
    def prepare_captions(self, states: Tensor, capacity: int) -> SessionFactory:
        """Project image states (I, M, D_v), and return a factory of decoding sessions over the images."""
        model = cast("Captioner | Pretrainer", self.model)
        text = model.text if isinstance(model, Pretrainer) else model.decoder
        return self._start_sessions(text, model.lm_head, text.project(states, for_steps=True), capacity)

    @_inference
    def project_images(self, states: Tensor) -> Memory:
        """Return the cross-attention keys and values of image states (I, M, D_v)."""
        model = cast("Answerer | Matcher", self.model)
        return (model.encoder if isinstance(model, Answerer) else model.text).project(states)

    @_inference
    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the states (Q, T, D) of questions (Q, T) about images."""
        model = cast(Answerer, self.model)
        return model.encode_question(ids.to(self.device), mask.to(self.device), images)

    @_inference
    def prepare_answers(self, questions: Tensor, mask: Tensor, capacity: int) -> SessionFactory:
        """Project question states (Q, T, D), and return a factory of decoding sessions over the questions."""
        model = cast(Answerer, self.model)
        memory = model.decoder.project(questions, mask.to(self.device))
        return self._start_sessions(model.decoder, model.lm_head, memory, capacity)

    @_inference
    def rank_answers(
        self,
        questions: Tensor,
        mask: Tensor,
        candidates: Sequence[Sequence[int]],
        shortlist: int | None,
        smoothing: float,
    ) -> Tensor:
        """Return the log-probabilities (Q, candidates) of complete answers to questions (Q, T, D)."""
        model = cast(Answerer, self.model)
        memory = model.decoder.project(questions, mask.to(self.device))
        decoder = TorchPackedDecoder(memory=memory, text=model.decoder, head=model.lm_head)
        return rank_answers(decoder, candidates, shortlist=shortlist, smoothing=smoothing)

    @_inference
    def embed_images(self, states: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (I, E) of image states (I, M, D_v)."""
        return _normalize(cast(Matcher, self.model).embed_image(states))

    @_inference
    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (B, E) of texts (B, T)."""
        return _normalize(cast(Matcher, self.model).embed_text(ids.to(self.device), mask.to(self.device)))

    @_inference
    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the probability (B,) that texts (B, T) match images."""
        return self.match_logits(ids, mask, images).softmax(-1)[:, 1]

    @_inference
    def match_log_odds(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the log-odds (B,) that texts (B, T) match images."""
        logits = self.match_logits(ids, mask, images)
        return logits[:, 1] - logits[:, 0]

    @_inference
    def match_logits(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the ITM logits (B, 2) of texts (B, T) with images."""
        return cast(Matcher, self.model).match_logits(ids.to(self.device), mask.to(self.device), images).float()

    @_inference
    def compare_logits(self, ids: Tensor, mask: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return the logits (B, classes) of statements (B, T) about pairs of images."""
        model = cast(Comparer, self.model)
        return model.logits(ids.to(self.device), mask.to(self.device), (left, right)).float()

    @_inference
    def ground(self, ids: Tensor, mask: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, 4) of expressions (B, T), as fractions of the image size, and log-probabilities (B,)."""
        model = cast(Grounder, self.model)
        ids, mask = ids.to(self.device), mask.to(self.device)
        session = EagerSession(model.decoder, model.lm_head, model.make_memory(ids, mask, states), COORDINATES)
        start = ids.new_full((len(ids), 1), model.config.box_start_id)
        numbers, logprob = decode_boxes(session, start, model.box_ids(self.device), model.config.box_reading)
        x, y, width, height = (numbers.float() / model.config.box_bins).unbind(1)
        edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        return edges.clamp(0, 1), logprob

    @_inference
    def project_captioned_images(self, states: Tensor, ids: Tensor, mask: Tensor) -> Memory:
        """Return the cross-attention keys and values of images followed by their captions (I, T)."""
        return cast(Matcher, self.model).project_captioned(states, ids.to(self.device), mask.to(self.device))

    # Explanations. Gradients are taken with respect to the embedded text, so no weight takes part and threads can share
    # the model. The methods of TextTransformer are called unbound, because a compiled method records no trace.

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain_match(self, ids: Tensor, mask: Tensor, states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return Grad-CAM maps (B, T, N) of a match, and its probability (B,)."""
        model = cast(Matcher, self.model)
        ids, mask, trace = ids.to(self.device), mask.to(self.device), Trace(attention=True)
        embedded = model.text.embeddings(ids).requires_grad_()
        fused = TextTransformer.encode_embedded(model.text, embedded, mask, states.clone(), trace=trace)
        logits = model.itm_head(fused[:, 0]).float()
        return _grad_cam(trace, layer, logits[:, 1]) * mask[..., None], logits.softmax(-1)[:, 1].detach()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain_next(
        self, ids: Tensor, mask: Tensor, following: Tensor, states: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return Grad-CAM maps (B, N) of the next token, and its log-probability (B,)."""
        model = cast("Captioner | Pretrainer", self.model)
        decoder = model.text if isinstance(model, Pretrainer) else model.decoder
        ids, mask, trace = ids.to(self.device), mask.to(self.device), Trace(attention=True)
        embedded = decoder.embeddings(ids).requires_grad_()
        hidden = TextTransformer.decode_embedded(decoder, embedded, mask, states.clone(), trace=trace)
        rows, ends = torch.arange(len(ids), device=self.device), mask.sum(1) - 1
        logprob = model.to_logits(hidden[rows, ends]).float().log_softmax(-1)[rows, following.to(self.device)]
        return _grad_cam(trace, layer, logprob)[rows, ends], logprob.detach()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain_answers(
        self, ids: Tensor, mask: Tensor, states: Tensor, answers: Tensor, answers_mask: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return Grad-CAM maps (Q, T, N) of answers, and their log-probabilities (Q,)."""
        model = cast(Answerer, self.model)
        ids, mask, trace = ids.to(self.device), mask.to(self.device), Trace(attention=True)
        answers, answers_mask = answers.to(self.device), answers_mask.to(self.device)
        embedded = model.encoder.embeddings(ids).requires_grad_()
        questions = TextTransformer.encode_embedded(model.encoder, embedded, mask, states.clone(), trace=trace)
        logprobs = model.logits(answers[:, :-1], answers_mask[:, :-1], questions, mask).float().log_softmax(-1)
        token_logprobs = logprobs.gather(2, answers[:, 1:, None]).squeeze(2) * answers_mask[:, 1:]
        logprob = token_logprobs.sum(1)  # (Q,)
        return _grad_cam(trace, layer, logprob) * mask[..., None], logprob.detach()


def _grad_cam(trace: Trace, layer: int, scores: Tensor) -> Tensor:
    """Return float32 maps (B, T, N) over the patches, without the class token, for scores (B,)."""
    weights = trace.cross_weights[layer]  # (B, H, T, N + 1)
    (gradient,) = torch.autograd.grad(scores.sum(), weights)
    return (weights.detach() * gradient.clamp(min=0))[..., 1:].float().mean(1)


class EagerSession:
    """A decoding run of a text transformer with its language head; see [`Session`][openblip.decoding.protocol.Session].

    Args:
        text: Text transformer to decode with.
        head: Language head of the transformer.
        memory: Cross-attention keys and values of the items. `None` decodes text alone and needs `items`.
        capacity: Maximum number of tokens in a row.
        items: Number of items, if there is no memory.
        packing: Packed weights to use; the caller has checked them.
    """

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        capacity: int,
        items: int | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.text = text
        self.packing = packing
        self.head = head
        self.memory = memory
        self.width = 1
        rows = memory.items if memory is not None else items or 1
        self.cache = Cache(text.config, rows, capacity, like=text.embeddings.norm.weight)

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (rows, t) to all rows; return the logits (rows, V) of the next token."""
        with nullcontext() if self.packing is None else self.packing.active(self.text, checked=True):
            states = self.text.step(ids, self.memory, self.cache)
            return self.head(states[:, -1], self.text.embeddings.word).float()

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        items = self.cache.keys.shape[1]
        self.cache.select(torch.arange(items, device=self.cache.keys.device).repeat_interleave(width))
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]` of the same item."""
        self.cache.select(rows)

    def keep(self, items: Tensor) -> None:
        """Drop all items except these."""
        offsets = torch.arange(self.width, device=items.device)
        self.cache.select((items[:, None] * self.width + offsets).flatten())
        if self.memory is not None:
            self.memory = self.memory.select(items)


def _images_at_once(config: VisionConfig, dtype: torch.dtype) -> int:
    """Return the number of images that a CPU encodes together."""
    return max(1, _MOST_BYTES // (config.tokens * config.mlp_width * dtype.itemsize))


def _normalize(embeddings: Tensor) -> Tensor:
    # Normalize again: the norm of half-precision embeddings is off by more than float32 users expect.
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)
