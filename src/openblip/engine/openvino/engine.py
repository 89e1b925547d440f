"""The engine: converted parts of a model behind the same protocols as the reference engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from openblip.decoding.protocol import Session, SessionFactory
from openblip.decoding.rank import rank_answers
from openblip.engine.base import BaseEngine
from openblip.engine.openvino.compiled import HINTS, CompiledPart, run_per_image
from openblip.engine.openvino.convert import cache_name, convert_model
from openblip.engine.openvino.session import OpenVinoPackedDecoder, OpenVinoSession
from openblip.engine.parts import flatten_memory, to_memory
from openblip.engine.protocols import Answers, Captions, Embeddings, ImageMemory, Matches
from openblip.errors import ConfigError, InputError
from openblip.model.config import ModelConfig, ModelKind
from openblip.model.layers import padding_bias
from openblip.model.text import Memory

# Capabilities of the tasks that have a conversion.
CAPABILITIES: dict[ModelKind, tuple[type[object], ...]] = {
    "caption": (Captions,),
    "vqa": (ImageMemory, Answers),
    "retrieval": (ImageMemory, Embeddings, Matches),
    "pretrain": (ImageMemory, Embeddings, Matches, Captions),
}


class OpenVinoEngine(BaseEngine):
    """A model converted to OpenVINO, part by part. Caches, beams and scores stay in Python.

    The methods implement the protocols of [`protocols`][openblip.engine.protocols], which document them.

    With "int8", weights are stored in 8 bits. The decoder step rounds its activations as they arrive, with one scale
    per row and group of 128 inputs; the other parts compute in bf16 on processors that support bf16, and round like the
    step on others. With `calibration`, NNCF quantizes the image encoder from the activations of these images, which
    is faster.

    Args:
        model: A model of `openblip.model`.
        config: Its configuration.
        precision: "fp32", "bf16" or "int8".
        cache: Folder of converted models.
        key: Name of the weights in the cache, such as their digest.
        calibration: Pixels (I, 3, S, S) of typical images, to quantize the image encoder.

    Raises:
        InputError: Unknown precision, or OpenVINO is not installed.
        ConfigError: The task of the model has no conversion.
    """

    name = "openvino"

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
        if precision not in HINTS:
            raise InputError(f"precision must be one of {', '.join(HINTS)} with engine='openvino', got {precision!r}")
        if config.task not in CAPABILITIES:
            raise ConfigError(
                f"the task must be one of {', '.join(CAPABILITIES)} with engine='openvino', got {config.task!r}; "
                "use engine='torch'"
            )
        super().__init__(torch.device("cpu"), frozenset(CAPABILITIES[config.task]))
        self.config = config
        self.precision = precision
        folder = cache / cache_name(key, config, precision, calibration)
        convert_model(folder, model, config, precision, calibration)
        self._parts = {path.stem: CompiledPart(path, precision) for path in folder.glob("*.xml")}
        self._decoder = config.answer_decoder if self.supports(Answers) else config.grounded_text

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the image states (I, M, D_v) of pixels (I, 3, S, S)."""
        return run_per_image(self._parts["vision"], pixels)[0]

    def prepare_captions(self, states: Tensor, capacity: int) -> SessionFactory:
        """Project image states (I, M, D_v), and return a factory of decoding sessions over the images."""
        return self._make_factory(self.project_images(states), capacity)

    def project_images(self, states: Tensor) -> Memory:
        """Return the cross-attention keys and values of image states (I, M, D_v)."""
        return to_memory(run_per_image(self._parts["memory"], states))

    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the states (Q, T, D) of questions (Q, T) about images."""
        memory = images if isinstance(images, Memory) else self.project_images(images)
        return self._parts["question_encoder"](ids, padding_bias(mask, torch.float32), *flatten_memory(memory))[0]

    def prepare_answers(self, questions: Tensor, mask: Tensor, capacity: int) -> SessionFactory:
        """Project question states (Q, T, D), and return a factory of decoding sessions over the questions."""
        return self._make_factory(self._project_questions(questions, mask), capacity)

    def rank_answers(
        self,
        questions: Tensor,
        mask: Tensor,
        candidates: Sequence[Sequence[int]],
        shortlist: int | None,
        smoothing: float,
    ) -> Tensor:
        """Return the log-probabilities (Q, candidates) of complete answers to questions (Q, T, D)."""
        memory = self._project_questions(questions, mask)
        decoder = OpenVinoPackedDecoder(memory=memory, part=self._parts["packed_step"])
        return rank_answers(decoder, candidates, shortlist=shortlist, smoothing=smoothing)

    def embed_images(self, states: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (I, E) of image states (I, M, D_v)."""
        return self._parts["image_embedding"](states[:, :1])[0]

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (B, E) of texts (B, T)."""
        return self._parts["text_embedding"](ids, padding_bias(mask, torch.float32))[0]

    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the probability (B,) that texts (B, T) match images."""
        memory = images if isinstance(images, Memory) else self.project_images(images)
        return self._parts["match"](ids, padding_bias(mask, torch.float32), *flatten_memory(memory))[0]

    def match_log_odds(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the log-odds (B,) that texts (B, T) match images."""
        return self.match(ids, mask, images).logit(1e-7)  # the converted part returns probabilities only

    def _project_questions(self, questions: Tensor, mask: Tensor) -> Memory:
        projected = run_per_image(self._parts["question_memory"], questions)
        return to_memory(projected, padding_bias(mask, torch.float32))

    def _make_factory(self, memory: Memory, capacity: int) -> SessionFactory:
        step, config = self._parts["step"], self._decoder

        def start(items: list[int]) -> Session:
            return OpenVinoSession(step, config, memory.subset(items), capacity)

        return start
