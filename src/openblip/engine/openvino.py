"""OpenVINO: the same modules, converted part by part, for CPUs. Needs ``pip install 'openblip[openvino]'``.

A part is what runs between two decisions of ours: the image encoder, the projection of what cross-attention reads, one
step of a decoder over its caches, a text encoder. Caches, beams and scores stay ours, under the same protocol as the
reference engine's. Converted parts lie on disk, below a name made of the weights' digest.

Shapes: I items, R rows, t new tokens, M memory tokens, L layers, H heads, K = D // H, V vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openblip.decoding.protocol import Session
from openblip.decoding.rank import rank
from openblip.engine.base import StartSession
from openblip.engine.parts import (
    Grounded,
    ImageEmbedding,
    Match,
    Packed,
    Projection,
    Step,
    TextEmbedding,
    Vision,
    flat,
)
from openblip.errors import ConfigError, InputError
from openblip.model.config import ModelConfig, ModelKind, TextConfig
from openblip.model.layers import causal_bias, padding_bias, unseen_bias
from openblip.model.text import LanguageHead, Memory, TextTransformer

FORMAT = 3
SERVED: tuple[ModelKind, ...] = ("caption", "vqa", "retrieval", "pretrain")
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # never left to OpenVINO, which may round fp32 by itself
_GROUP = "128"  # inputs that share a scale where activations are rounded as they come


class OpenVinoEngine:
    """A model in OpenVINO, in "fp32", "bf16" or "int8".

    With "int8" weights are stored in 8 bits. A decoder's step rounds activations as they come, per row and group of
    128; the other parts compute in bf16 where the processor does, else they round in the same way. Given
    ``calibration`` pictures, the image encoder is instead quantized as a whole by what they bring about (NNCF), which
    is faster. ``cache`` is the folder of converted parts and ``key`` what names this model's weights there.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        precision: str,
        *,
        cache: Path,
        key: str,
        calibration: Tensor | None = None,
    ) -> None:
        if precision not in _HINTS:
            raise InputError(f"engine='openvino' computes in {', '.join(_HINTS)}, not {precision}")
        if config.task not in SERVED:
            raise ConfigError(f"engine='openvino' serves {', '.join(SERVED)}, not {config.task}: use engine='torch'")
        self.device = torch.device("cpu")
        self.config = config
        self.precision = precision
        self._room = config.answer_decoder if config.task == "vqa" else config.grounded_text
        folder = cache / _name(key, config, precision, calibration)
        _convert_all(folder, model, config, precision, calibration)
        self._parts = {path.stem: _Part(path, precision) for path in folder.glob("*.xml")}

    def encode_images(self, pixels: Tensor) -> Tensor:
        return _one_by_one(self._parts["vision"], pixels)[0]

    def captioning(self, states: Tensor, capacity: int) -> StartSession:
        return self._sessions(self._project("memory", states), capacity)

    def read(self, states: Tensor) -> Memory:
        return self._project("memory", states)

    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        memory = images if isinstance(images, Memory) else self.read(images)
        return self._parts["grounded"](ids, padding_bias(mask, torch.float32), *flat(memory))[0]

    def answering(self, questions: Tensor, mask: Tensor, capacity: int) -> StartSession:
        return self._sessions(self._heard(questions, mask), capacity)

    def rank_answers(
        self, questions: Tensor, mask: Tensor, candidates: Sequence[Sequence[int]], k: int | None, smoothing: float
    ) -> Tensor:
        decoder = _PackedDecoder(self._parts["packed"], self._heard(questions, mask))
        return rank(decoder, candidates, k=k, smoothing=smoothing)

    def embed_images(self, states: Tensor) -> Tensor:
        return self._parts["image_embedding"](states[:, :1])[0]

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._parts["text_embedding"](ids, padding_bias(mask, torch.float32))[0]

    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        memory = images if isinstance(images, Memory) else self.read(images)
        return self._parts["match"](ids, padding_bias(mask, torch.float32), *flat(memory))[0]

    def _project(self, part: str, states: Tensor) -> Memory:
        found = _one_by_one(self._parts[part], states)
        return Memory(tuple(zip(found[::2], found[1::2], strict=True)), None)

    def _heard(self, questions: Tensor, mask: Tensor) -> Memory:
        return Memory(self._project("heard", questions).layers, padding_bias(mask, torch.float32))

    def _sessions(self, memory: Memory, capacity: int) -> StartSession:
        step, config = self._parts["step"], self._room

        def start(items: list[int]) -> Session:
            every = items == list(range(memory.items))
            return OpenVinoSession(step, config, memory if every else memory.select(torch.tensor(items)), capacity)

        return start


class OpenVinoSession:
    """One decoding run (:class:`openblip.decoding.protocol.Session`). The caches are ours and are read in place."""

    def __init__(self, step: _Part, config: TextConfig, memory: Memory, capacity: int) -> None:
        self.part = step
        self.memory = memory
        self.width = 1
        self.length = 0
        # Zeros and not whatever was there: hidden places are multiplied by 0, which NaN survives.
        shape = (config.depth, memory.items, config.heads, capacity, config.width // config.heads)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def step(self, ids: Tensor) -> Tensor:
        new, room = ids.shape[1], self.keys.shape[3]
        end = self.length + new
        if end > room:
            raise InputError(f"the cache holds {room} tokens; {end} were fed")
        positions = torch.arange(self.length, end)
        hidden = unseen_bias(torch.arange(room) >= self.length, torch.float32).expand(1, 1, new, room)
        bias = torch.cat([hidden, causal_bias(new, torch.float32, self.keys.device)], 3)
        logits, keys, values = self.part(ids, positions, self.keys, self.values, bias, *flat(self.memory, bias=True))
        self.keys[:, :, :, self.length : end] = keys
        self.values[:, :, :, self.length : end] = values
        self.length = end
        return logits

    def widen(self, width: int) -> None:
        self._select(torch.arange(self.keys.shape[1]).repeat_interleave(width))
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        self._select(rows)

    def keep(self, items: Tensor) -> None:
        self._select((items[:, None] * self.width + torch.arange(self.width)).flatten())
        self.memory = self.memory.select(items)

    def _select(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


@dataclass(frozen=True)
class _PackedDecoder:
    """See :class:`openblip.decoding.rank.PackedDecoder`."""

    part: _Part
    memory: Memory

    @property
    def items(self) -> int:
        return self.memory.items

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def logits(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        bias = unseen_bias(~seen[None, None], torch.float32)
        return self.part(ids[None], positions, bias, *flat(self.memory, bias=True))[0]

    def select(self, item: int) -> _PackedDecoder:
        return _PackedDecoder(self.part, self.memory.select(torch.tensor([item])))


def _one_by_one(part: _Part, rows: Tensor) -> list[Tensor]:
    """Outputs for pictures: together they would be no faster, and OpenVINO keeps the room for the most it ever saw."""
    found: list[Tensor] = []
    for index in range(len(rows)):
        with part.run(rows[index : index + 1]) as outputs:
            found = found or _rooms(outputs, len(rows))
            for whole, piece in zip(found, outputs, strict=True):
                whole[index : index + 1] = piece
    return found


def _rooms(outputs: Sequence[Tensor], items: int) -> list[Tensor]:
    """Tensors like ``outputs``, for ``items`` pictures: of one block, which goes back to the system as a whole."""
    block = outputs[0].new_empty(items * sum(output.numel() for output in outputs))
    pieces = torch.split(block, [items * output.numel() for output in outputs])
    return [piece.view(items, *output.shape[1:]) for piece, output in zip(pieces, outputs, strict=True)]


# --- a converted part at work -------------------------------------------------------------------------------------


class _Part:
    """One converted part: read and compiled when first used, called by any number of threads."""

    def __init__(self, path: Path, precision: str) -> None:
        self.path = path
        self.settings = {
            "INFERENCE_PRECISION_HINT": _hint(path.stem, precision),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8" else "0",
        }
        self._compiled: Any = None
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs."""
        with self.run(*inputs) as found:
            return [output.clone() for output in found]

    @contextmanager
    def run(self, *inputs: Tensor) -> Iterator[list[Tensor]]:
        """The outputs where they lie: the next call writes into the same memory."""
        with self._request() as request:
            arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in inputs]
            found = request.infer(arrays, share_inputs=True, share_outputs=True)
            request._inputs_data = None  # or it holds what it was given, a memory of pictures, until it is called again
            yield [torch.from_numpy(found[i]) for i in range(len(found))]

    @contextmanager
    def _request(self) -> Iterator[Any]:
        with self._lock:
            if self._compiled is None:
                core = _need("openvino").Core()
                self._compiled = core.compile_model(core.read_model(self.path), "CPU", self.settings)
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        try:
            yield request
        finally:
            with self._lock:
                self._idle.append(request)


def _hint(part: str, precision: str) -> str:
    """What a part computes in, between its 8-bit weights if it has them.

    With few rows, as in a decoder's step, 8-bit products win; with many, bf16 ones do where the processor has them."""
    if precision == "int8" and part != "step" and _has_bf16():
        return "bf16"
    return _HINTS[precision]


@functools.cache
def _has_bf16() -> bool:
    return "BF16" in _need("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# --- conversion ---------------------------------------------------------------------------------------------------


def _convert_all(
    folder: Path, model: nn.Module, config: ModelConfig, precision: str, calibration: Tensor | None
) -> None:
    """Fill the folder, unless it is there: all of it or nothing, whoever else does the same at the same time."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with redirect_stdout(sys.stderr):  # NNCF draws its progress where our results go
            for name, (module, example) in _modules(model.float().eval(), config).items():
                converted = _convert(module, example)
                if precision == "int8":
                    converted = _quantized(converted, name, calibration)
                _need("openvino").save_model(converted, beside / f"{name}.xml", compress_to_fp16=False)
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _convert(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """All sizes but those that the weights fix stay open."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every check of sizes that it passes by
        return _need("openvino").convert_model(module.eval(), example_input=example)


def _quantized(model: Any, name: str, calibration: Tensor | None) -> Any:
    nncf = _need("nncf")
    nncf.set_log_level(logging.WARNING)
    if name == "memory" and _has_bf16():  # one product per picture: taking 8-bit weights apart costs more than it saves
        return model
    if name == "vision" and calibration is not None:
        pictures = nncf.Dataset([picture[None].numpy() for picture in calibration])
        return nncf.quantize(model, pictures, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _name(key: str, config: ModelConfig, precision: str, calibration: Tensor | None) -> str:
    digest = hashlib.sha256(f"{FORMAT} {key} {config} {precision} {_need('openvino').__version__}".encode())
    if calibration is not None:
        digest.update(calibration.numpy().tobytes())
    return digest.hexdigest()[:32]


def _need(module: str) -> Any:
    """OpenVINO or NNCF. Both report every conversion to a server of their makers, by a process each, unless they lack
    the package for it; so they are shown none. Whoever has imported them before has decided for themselves."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError("engine='openvino' needs its libraries: pip install 'openblip[openvino]'") from error


# --- the parts ----------------------------------------------------------------------------------------------------

_Made = tuple[nn.Module, tuple[Tensor, ...]]  # a module and an example of its inputs


def _modules(model: Any, config: ModelConfig) -> dict[str, _Made]:
    """The parts of a model by name."""
    side, tokens, width = config.vision.image_size, config.vision.tokens, config.vision.width
    states = torch.zeros(2, tokens, width)
    parts: dict[str, _Made] = {"vision": (Vision(model.vision), (torch.zeros(2, 3, side, side),))}
    reader = model.encoder if config.task == "vqa" else model.decoder if config.task == "caption" else model.text
    parts["memory"] = (Projection(reader), (states,))
    memory = _example_memory(reader.config, tokens)
    ids, bias = torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 1, 1, 5)
    if config.task in ("caption", "pretrain"):
        parts["step"] = _step(reader, model.lm_head, memory)
    if config.task == "vqa":
        heard = _example_memory(model.decoder.config, 5)
        parts["grounded"] = (Grounded(reader), (ids, bias, *memory))
        parts["heard"] = (Projection(model.decoder), (torch.zeros(2, 5, config.text.width),))
        parts["step"] = _step(model.decoder, model.lm_head, heard)
        parts["packed"] = _packed(model.decoder, model.lm_head, heard)
    if config.task in ("retrieval", "pretrain"):
        parts["match"] = (Match(model), (ids, bias, *memory))
        parts["text_embedding"] = (TextEmbedding(model), (ids, bias))
        parts["image_embedding"] = (ImageEmbedding(model), (states[:, :1],))
    return parts


def _example_memory(config: TextConfig, length: int) -> list[Tensor]:
    shape = (2, config.heads, length, config.width // config.heads)
    return [torch.zeros(shape) for _ in range(2 * config.depth)]


def _step(text: TextTransformer, head: LanguageHead, memory: list[Tensor]) -> _Made:
    config = text.config
    cache = torch.zeros(config.depth, 4, config.heads, 7, config.width // config.heads)
    ids, positions, bias = torch.zeros(4, 3, dtype=torch.long), torch.arange(3), torch.zeros(1, 1, 3, 10)
    padding = torch.zeros(2, 1, 1, memory[0].shape[2])
    return Step(text, head), (ids, positions, cache, cache.clone(), bias, padding, *memory)


def _packed(text: TextTransformer, head: LanguageHead, memory: list[Tensor]) -> _Made:
    ids, padding = torch.zeros(1, 3, dtype=torch.long), torch.zeros(2, 1, 1, memory[0].shape[2])
    return Packed(text, head), (ids, torch.arange(3), torch.zeros(1, 1, 3, 3), padding, *memory)
