"""``torch.compile``: the reference engine with its image encoder, text encoders and decoder steps compiled.

Shapes are few and fixed, so that little is compiled: image batches are padded to a power of two, a session keeps all
its rows to the end and hides those that are done. On a GPU the compiled steps are CUDA graphs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.decoding.protocol import Session
from openblip.engine.base import StartSession
from openblip.engine.eager import EagerEngine
from openblip.engine.parts import Step, flat
from openblip.errors import InputError
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.layers import causal_bias, unseen_bias
from openblip.model.pretrainer import Pretrainer
from openblip.model.text import Memory, TextTransformer


class CompiledEngine(EagerEngine):
    """See :class:`EagerEngine`. The first call of each shape compiles, which takes a while."""

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, *, backend: str = "inductor"
    ) -> None:
        super().__init__(model, device, dtype)
        options: dict[str, Any] = {"backend": backend}
        if backend == "inductor" and device.type == "cuda":
            options["mode"] = "reduce-overhead"
        compiled: Any = torch.compile
        self._vision = compiled(self.model.vision, dynamic=False, **options)
        decoder = _decoder(self.model)
        self._step = None
        if decoder is not None:
            self._step = compiled(Step(decoder, self.model.lm_head).eval(), dynamic=False, **options)
        for text in _encoders(self.model):
            cast(Any, text).encode_embedded = compiled(text.encode_embedded, dynamic=True, backend=backend)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        images = len(pixels)
        pixels = pixels.to(self.device, self.dtype)
        filled = 1 << (images - 1).bit_length()
        if filled > images:
            pixels = torch.cat([pixels, pixels[:1].expand(filled - images, -1, -1, -1)])
        return cast(Tensor, self._vision(pixels))[:images].clone()

    @torch.inference_mode()
    def captioning(self, states: Tensor, capacity: int) -> StartSession:
        model = cast("Captioner | Pretrainer", self.model)
        text = model.text if isinstance(model, Pretrainer) else model.decoder
        return self._sessions(text, text.project(states), capacity)

    @torch.inference_mode()
    def answering(self, questions: Tensor, mask: Tensor, capacity: int) -> StartSession:
        model = cast(Answerer, self.model)
        return self._sessions(model.decoder, model.decoder.project(questions, mask.to(self.device)), capacity)

    def _sessions(self, text: TextTransformer, memory: Memory, capacity: int) -> StartSession:
        def start(items: list[int]) -> Session:
            every = items == list(range(memory.items))
            chosen = memory if every else memory.select(torch.tensor(items, device=self.device))
            return StaticSession(self._step, text, chosen, capacity)

        return start


class StaticSession:
    """One decoding run whose shapes never change (:class:`openblip.decoding.protocol.Session`).

    Items that are done stay where they are, unread: ``live`` are the places of the others.
    """

    def __init__(self, step: Any, text: TextTransformer, memory: Memory, capacity: int) -> None:
        self.compiled, self.text = step, text
        self.memory = list(flat(memory, bias=True))
        self.live = torch.arange(memory.items, device=text.device)
        self.width, self.length = 1, 0
        config = text.config
        shape = (config.depth, memory.items, config.heads, capacity, config.width // config.heads)
        # Zeros and not whatever was there: hidden places are multiplied by 0, which NaN survives.
        like = text.embeddings.norm.weight
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    def step(self, ids: Tensor) -> Tensor:
        new, room, device = ids.shape[1], self.keys.shape[3], self.keys.device
        end = self.length + new
        if end > room:
            raise InputError(f"the cache holds {room} tokens; {end} were fed")
        hidden = unseen_bias(torch.arange(room, device=device) >= self.length, self.keys.dtype)
        bias = torch.cat([hidden.expand(1, 1, new, room), causal_bias(new, self.keys.dtype, device)], 3)
        rows, whole = self._rows(), self.keys.shape[1]
        fed = ids.new_zeros(whole, new).index_copy_(0, rows, ids) if len(rows) < whole else ids
        positions = torch.arange(self.length, end, device=device)
        logits, keys, values = self.compiled(fed, positions, self.keys, self.values, bias, *self.memory)
        self.keys[:, :, :, self.length : end] = keys
        self.values[:, :, :, self.length : end] = values
        self.length = end
        return logits[rows].float()

    def widen(self, width: int) -> None:
        places = torch.arange(self.keys.shape[1], device=self.keys.device).repeat_interleave(width)
        self.keys, self.values = self.keys[:, places], self.values[:, places]
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        places = torch.arange(self.keys.shape[1], device=self.keys.device)
        mine = self._rows()
        places[mine] = mine[rows]
        self.keys, self.values = self.keys[:, places], self.values[:, places]

    def keep(self, items: Tensor) -> None:
        self.live = self.live[items]

    def _rows(self) -> Tensor:
        """The places of the live items' rows."""
        return (self.live[:, None] * self.width + torch.arange(self.width, device=self.live.device)).flatten()


def _decoder(model: nn.Module) -> TextTransformer | None:
    if isinstance(model, Pretrainer):
        return model.text
    return model.decoder if isinstance(model, Captioner | Answerer) else None


def _encoders(model: nn.Module) -> list[TextTransformer]:
    """The text transformers that read both ways."""
    return [
        part
        for name in ("text", "encoder", "fusion")
        if isinstance(part := getattr(model, name, None), TextTransformer)
    ]
