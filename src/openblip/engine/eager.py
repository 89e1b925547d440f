"""The reference engine: plain PyTorch, the same modules that training uses.

Shapes: I images, Q questions, B texts, T tokens, M = N + 1 image tokens, D width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.decoding.boxes import COORDINATES, decode_boxes
from openblip.decoding.protocol import Session
from openblip.decoding.rank import rank_answers
from openblip.engine.int8 import Int8Linear
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.grounder import Grounder
from openblip.model.layers import Trace
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

    @property
    def differentiable(self) -> bool:
        """Whether gradients mean anything: 8-bit layers have none."""
        return not any(isinstance(module, Int8Linear) for module in self.model.modules())

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
    def read(self, states: Tensor) -> Memory:
        """Cross-attention keys and values of image states, for any number of questions or texts to match."""
        model = cast("Answerer | Matcher", self.model)
        return (model.encoder if isinstance(model, Answerer) else model.text).project(states)

    @torch.inference_mode()
    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Question states (Q, T, D); an image's questions lie side by side, as many for each of the I images."""
        model = cast(Answerer, self.model)
        return model.encode_question(ids.to(self.device), mask.to(self.device), images)

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
    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Probability (B,) that text and image match; an image's texts ([ENC] first) lie side by side, B / I each."""
        return self.match_logits(ids, mask, images).softmax(-1)[:, 1]

    @torch.inference_mode()
    def match_logits(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """As :meth:`match`, before the softmax: (B, 2), column 1 for "match"."""
        return cast(Matcher, self.model).match_logits(ids.to(self.device), mask.to(self.device), images).float()

    @torch.inference_mode()
    def compare_logits(self, ids: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Logits (B, classes), class 1 for "true", of statements ([ENC] first) about I pairs of images, B / I each."""
        model = cast(Comparer, self.model)
        return model.logits(ids.to(self.device), mask.to(self.device), (first, second)).float()

    @torch.inference_mode()
    def ground(self, ids: Tensor, mask: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of expressions ([CLS] first), B / I of each image: (B, 4) shares of the picture, log-probability (B,).

        Left, top, right and bottom. Each image is projected once for all its expressions.
        """
        model = cast(Grounder, self.model)
        ids, mask = ids.to(self.device), mask.to(self.device)
        session = EagerSession(model.decoder, model.lm_head, model.read(ids, mask, states), COORDINATES)
        start = ids.new_full((len(ids), 1), model.config.box_start_id)
        numbers, logprob = decode_boxes(session, start, model.box_ids(self.device), model.config.box_reading)
        x, y, width, height = (numbers.float() / model.config.box_bins).unbind(1)
        edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        return edges.clamp(0, 1), logprob

    @torch.inference_mode()
    def read_captioned(self, states: Tensor, ids: Tensor, mask: Tensor) -> Memory:
        """As :meth:`read`, of images and their captions ([CLS] first) side by side, for dialogs about them."""
        return cast(Matcher, self.model).read_captioned(states, ids.to(self.device), mask.to(self.device))

    # Grad-CAM: cross-attention to the patches times what of its gradient raises the score, averaged over heads, at
    # ``layer``; what the image's class token gets is left out. After LAVIS, which does this for ITM (Selvaraju et al.
    # 2017; Li et al. 2021). Gradients end at the embedded text, so no weight takes part and threads share the model;
    # the transformers' own methods are called, as a compiled one keeps no trace.

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain_match(self, ids: Tensor, mask: Tensor, states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Maps (B, T, N) of what speaks for a match, and its probability (B,), of texts about one image's states."""
        model = cast(Matcher, self.model)
        ids, mask, trace = ids.to(self.device), mask.to(self.device), Trace(attention=True)
        text = model.text.embeddings(ids).requires_grad_()
        seen = TextTransformer.encode_embedded(model.text, text, mask, states.clone(), trace=trace)
        logits = model.itm_head(seen[:, 0]).float()
        return _grad_cam(trace, layer, logits[:, 1]) * mask[..., None], logits.softmax(-1)[:, 1].detach()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain_next(
        self, ids: Tensor, mask: Tensor, following: Tensor, states: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Maps (B, N) of what speaks for the tokens that follow texts about one image, and their log-probability."""
        model = cast("Captioner | Pretrainer", self.model)
        transformer = model.text if isinstance(model, Pretrainer) else model.decoder
        ids, mask, trace = ids.to(self.device), mask.to(self.device), Trace(attention=True)
        text = transformer.embeddings(ids).requires_grad_()
        states = TextTransformer.decode_embedded(transformer, text, mask, states.clone(), trace=trace)
        rows, last = torch.arange(len(ids), device=self.device), mask.sum(1) - 1
        logprob = model.to_logits(states[rows, last]).float().log_softmax(-1)[rows, following.to(self.device)]
        return _grad_cam(trace, layer, logprob)[rows, last], logprob.detach()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain_answers(
        self, ids: Tensor, mask: Tensor, states: Tensor, answers: Tensor, answers_mask: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Maps (Q, T, N) of what in questions about one image speaks for their answers, and the log-probability (Q,).

        ``answers`` and their mask are (Q, T'), from [DEC] to [SEP].
        """
        model = cast(Answerer, self.model)
        ids, mask, trace = ids.to(self.device), mask.to(self.device), Trace(attention=True)
        answers, answers_mask = answers.to(self.device), answers_mask.to(self.device)
        text = model.encoder.embeddings(ids).requires_grad_()
        questions = TextTransformer.encode_embedded(model.encoder, text, mask, states.clone(), trace=trace)
        logprobs = model.logits(answers[:, :-1], answers_mask[:, :-1], questions, mask).float().log_softmax(-1)
        said = logprobs.gather(2, answers[:, 1:, None]).squeeze(2) * answers_mask[:, 1:]
        return _grad_cam(trace, layer, said.sum(1)) * mask[..., None], said.sum(1).detach()


def _grad_cam(trace: Trace, layer: int, scores: Tensor) -> Tensor:
    """Heat (B, T, N), float32, of texts over patches for their scores (B,)."""
    weights = trace.cross_weights[layer]  # (B, H, T, N + 1)
    (gradient,) = torch.autograd.grad(scores.sum(), weights)
    return (weights.detach() * gradient.clamp(min=0))[..., 1:].float().mean(1)


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
