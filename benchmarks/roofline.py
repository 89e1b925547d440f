"""The minimum time of a row: its operations at the measured peak of matrix products, or its bytes at the measured
memory bandwidth, whichever is larger.

Included are matrix products and, once per decoder step, the decoder's weights and the cross-attention keys and values.
Norms, softmax, activations, image decoding and Python are not included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from openblip.model.config import ModelConfig, TextConfig
from openblip.model.products import multiply, uses_onednn

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic. A multiply-add is two operations; `numbers` are loaded in the row's precision."""

    operations: float
    numbers: float = 0.0


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of this machine: operations per second by precision, and bytes per second."""

    operations: dict[str, float]
    bandwidth: float

    def seconds(self, work: Sequence[Work], precision: str) -> float | None:
        """Return the minimum time of `work` in seconds, or `None` if the peak of this precision is unknown."""
        peak = self.operations.get(precision)
        if peak is None:
            return None
        return sum(max(w.operations / peak, w.numbers * BYTES[precision] / self.bandwidth) for w in work)


def count_encoding(config: ModelConfig, images: int) -> Work:
    """Return the work of encoding images."""
    vision = config.vision
    tokens, width = vision.tokens, vision.width
    products = vision.depth * (4 * width**2 + 2 * width * vision.mlp_width + 2 * tokens * width)
    patches = 3 * vision.patch_size**2 * width
    return Work(2.0 * images * tokens * (products + patches))


def count_decoding(config: ModelConfig, *, runs: int, steps: int, items: int, beams: int, memory: int) -> Work:
    """Return the work of decoding `runs` batches of `items` in `steps` with `beams`, with `memory` tokens per item."""
    decoding = count_steps(config, steps=steps, items=items, beams=beams, memory=memory)
    operations = decoding.operations + count_projection(config, items, memory).operations
    return Work(runs * operations, runs * decoding.numbers)


def count_steps(config: ModelConfig, *, steps: int, items: int, beams: int, memory: int) -> Work:
    """Return the work of decoder steps over keys and values that exist already."""
    text = config.text
    weights = text.depth * _layer(text) + text.width * (text.width + text.vocab_size)
    attention = 2 * text.depth * memory * text.width
    return Work(2.0 * steps * items * beams * (weights + attention), steps * (weights + items * attention))


def count_projection(config: ModelConfig, items: int, memory: int) -> Work:
    """Return the work of computing the cross-attention keys and values of `memory` tokens per item."""
    text = config.text
    return Work(4.0 * items * text.depth * memory * _memory_width(config) * text.width)


def count_text_encoding(config: ModelConfig, images: int, texts: int) -> Work:
    """Return the work of encoding each text (12 tokens) with each image or, without images, alone."""
    text, tokens = config.text, 12
    if not images:
        layer = 4 * text.width**2 + 2 * text.width * text.mlp_width
        return Work(2.0 * texts * tokens * text.depth * layer)
    memory = config.vision.tokens
    per_text = tokens * text.depth * (_layer(text) + 2 * memory * text.width)
    projecting = 2 * text.depth * memory * config.vision.width * text.width
    return Work(2.0 * images * (texts * per_text + projecting))


def measure(device: str, *, side: int = 2048, numbers: int = 64 * 2**20, seconds: float = 0.4) -> Peaks:
    """Measure the peaks: products of matrices of `side` in each precision, and sums of `numbers` float32 values."""
    operations: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if device == "cpu" and name == "fp16":
            continue
        left = torch.randn(side, side, device=device).to(dtype)
        calls = [lambda a=left: a @ a]
        if uses_onednn(left, left):
            calls.append(lambda a=left: multiply(a, a))
        operations[name] = 2.0 * side**3 / min(_best(call, device, seconds) for call in calls)
    bytes_ = torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device)
    with suppress(RuntimeError):  # without an integer product there is no minimum for int8
        operations["int8"] = 2.0 * side**3 / _best(lambda: torch._int_mm(bytes_, bytes_), device, seconds)
    if operations.get("int8", 0.0) < operations["fp32"]:
        operations.pop("int8", None)  # a slow fallback, not the speed of the machine
    large = torch.ones(numbers, device=device)
    bandwidth = large.numel() * 4 / _best(large.sum, device, seconds)
    return Peaks(operations, bandwidth)


def _best(call: Callable[[], object], device: str, seconds: float) -> float:
    call()
    times: list[float] = []
    start_time = time.perf_counter()
    while time.perf_counter() - start_time < seconds or len(times) < 3:
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def _layer(text: TextConfig) -> int:
    """Return the number of weights per token in a decoder layer: self-attention, half of cross-attention, MLP."""
    return 6 * text.width**2 + 2 * text.width * text.mlp_width


def _memory_width(config: ModelConfig) -> int:
    return config.text.width if config.task == "vqa" else config.vision.width
