"""`torch.compile`: the reference engine with a compiled image encoder, text encoders and decoder step.

Few shapes occur, so that few are compiled: image batches are padded to a power of two, and a session keeps all its
rows until the end and ignores the finished ones. On a GPU the compiled steps are CUDA graphs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.decoding.protocol import Session, SessionFactory
from openblip.engine.eager import EagerEngine
from openblip.engine.parts import Step, flatten_memory
from openblip.engine.protocols import Answers, Captions
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.layers import causal_bias, hiding_bias
from openblip.model.pretrainer import Pretrainer
from openblip.model.text import Memory, TextTransformer, check_capacity


class CompiledEngine(EagerEngine):
    """`EagerEngine` with compiled parts. The first call with each shape compiles, which takes a while.

    Args:
        model: A model of `openblip.model`; it is moved and put into evaluation mode in place.
        device: Device to run on.
        dtype: Floating-point type to run in.
        backend: Backend of `torch.compile`.
    """

    name = "compiled"

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, *, backend: str = "inductor"
    ) -> None:
        super().__init__(model, device, dtype)
        options: dict[str, Any] = {"backend": backend}
        if backend == "inductor" and device.type == "cuda":
            options["mode"] = "reduce-overhead"
        compile_module: Any = torch.compile
        self._vision = compile_module(self.model.vision, dynamic=False, **options)
        self._step = None
        if self.supports(Captions) or self.supports(Answers):
            decoder = self.model.text if isinstance(self.model, Pretrainer) else self.model.decoder
            self._step = compile_module(Step(decoder, self.model.lm_head).eval(), dynamic=False, **options)
        for name in ("text", "encoder", "fusion"):
            encoder = getattr(self.model, name, None)
            if isinstance(encoder, TextTransformer):
                compiled = compile_module(encoder.encode_embedded, dynamic=True, backend=backend)
                cast(Any, encoder).encode_embedded = compiled

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the image states (I, M, D_v) of pixels (I, 3, S, S)."""
        images = len(pixels)
        pixels = pixels.to(self.device, self.dtype)
        padded = 1 << (images - 1).bit_length()
        if padded > images:
            pixels = torch.cat([pixels, pixels[:1].expand(padded - images, -1, -1, -1)])
        return cast(Tensor, self._vision(pixels))[:images].clone()

    @torch.inference_mode()
    def prepare_captions(self, states: Tensor, capacity: int) -> SessionFactory:
        """Project image states (I, M, D_v), and return a factory of decoding sessions over the images."""
        model = cast("Captioner | Pretrainer", self.model)
        text = model.text if isinstance(model, Pretrainer) else model.decoder
        return self._make_factory(text, text.project(states), capacity)

    @torch.inference_mode()
    def prepare_answers(self, questions: Tensor, mask: Tensor, capacity: int) -> SessionFactory:
        """Project question states (Q, T, D), and return a factory of decoding sessions over the questions."""
        model = cast(Answerer, self.model)
        return self._make_factory(model.decoder, model.decoder.project(questions, mask.to(self.device)), capacity)

    def _make_factory(self, text: TextTransformer, memory: Memory, capacity: int) -> SessionFactory:
        def start(items: list[int]) -> Session:
            return StaticSession(self._step, text, memory.subset(items), capacity)

        return start


class StaticSession:
    """A decoding run whose tensor shapes never change; see [`Session`][openblip.decoding.protocol.Session].

    The rows of dropped items stay in the caches and are computed with placeholder tokens; `live` holds the positions
    of the other items.
    """

    def __init__(self, step: Any, text: TextTransformer, memory: Memory, capacity: int) -> None:
        self.compiled, self.text = step, text
        self.memory = list(flatten_memory(memory, bias=True))
        self.live = torch.arange(memory.items, device=text.device)
        self.width, self.length = 1, 0
        config = text.config
        shape = (config.depth, memory.items, config.heads, capacity, config.width // config.heads)
        # Zeros, not uninitialized memory: hidden positions are multiplied by 0, and 0 * NaN is NaN.
        like = text.embeddings.norm.weight
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (rows, t) to all rows; return the logits (rows, V) of the next token."""
        new, capacity, device = ids.shape[1], self.keys.shape[3], self.keys.device
        end = self.length + new
        check_capacity(capacity, end)
        hidden = hiding_bias(torch.arange(capacity, device=device) >= self.length, self.keys.dtype)
        bias = torch.cat([hidden.expand(1, 1, new, capacity), causal_bias(new, self.keys.dtype, device)], 3)
        rows, total = self._rows(), self.keys.shape[1]
        padded = ids.new_zeros(total, new).index_copy_(0, rows, ids) if len(rows) < total else ids
        positions = torch.arange(self.length, end, device=device)
        logits, keys, values = self.compiled(padded, positions, self.keys, self.values, bias, *self.memory)
        self.keys[:, :, :, self.length : end] = keys
        self.values[:, :, :, self.length : end] = values
        self.length = end
        return logits[rows].float()

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        sources = torch.arange(self.keys.shape[1], device=self.keys.device).repeat_interleave(width)
        self.keys, self.values = self.keys[:, sources], self.values[:, sources]
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]` of the same item."""
        sources = torch.arange(self.keys.shape[1], device=self.keys.device)
        live_rows = self._rows()
        sources[live_rows] = live_rows[rows]
        self.keys, self.values = self.keys[:, sources], self.values[:, sources]

    def keep(self, items: Tensor) -> None:
        """Drop all items except these."""
        self.live = self.live[items]

    def _rows(self) -> Tensor:
        """Return the positions of the rows of live items."""
        return (self.live[:, None] * self.width + torch.arange(self.width, device=self.live.device)).flatten()
