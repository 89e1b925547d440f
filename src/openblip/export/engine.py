"""An engine that runs exported graphs with the pipelines and the decoding of the package.

Shapes: see [`graphs`][openblip.export.graphs]; B texts, where the B / I texts of an image are adjacent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.decoding.boxes import decode_boxes
from openblip.decoding.protocol import Session, SessionFactory
from openblip.decoding.rank import PackedDecoder, rank_answers
from openblip.engine.base import BaseEngine
from openblip.engine.parts import flatten_memory, to_memory
from openblip.engine.protocols import Answers, Captions, Comparisons, Embeddings, Grounding, ImageMemory, Matches
from openblip.errors import InputError
from openblip.export.runtime import Runner
from openblip.model.config import ModelConfig, TextConfig
from openblip.model.layers import padding_bias
from openblip.model.text import Memory
from openblip.tasks import TaskName

CAPABILITIES: Mapping[str, tuple[type[object], ...]] = {
    "caption": (Captions,),
    "vqa": (ImageMemory, Answers),
    "retrieval": (ImageMemory, Embeddings, Matches),
    "grounding": (Grounding,),
    "nlvr": (Comparisons,),
}


class GraphEngine(BaseEngine):
    """The exported graphs of one task behind the protocols of [`protocols`][openblip.engine.protocols].

    Args:
        graphs: Runner of each role.
        config: Configuration of the model that was exported.
        task: The task.
    """

    name = "exported"

    def __init__(self, graphs: Mapping[str, Runner], config: ModelConfig, task: TaskName) -> None:
        super().__init__(torch.device("cpu"), frozenset(CAPABILITIES[task]))
        self.graphs = graphs
        self.config = config

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the image states (I, M, D_v) of pixels (I, 3, S, S)."""
        features = self._run("stem", pixels)[0] if "stem" in self.graphs else pixels
        return self._run("image_encoder", features)[0]

    def project_images(self, states: Tensor) -> Memory:
        """Return the cross-attention keys and values of image states (I, M, D_v)."""
        return to_memory(self._run("image_memory", states))

    def prepare_captions(self, states: Tensor, capacity: int) -> SessionFactory:
        """Project image states (I, M, D_v), and return a factory of decoding sessions over the images."""
        return self._make_factory(self.project_images(states), self.config.grounded_text)

    def encode_questions(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the keys and values (Q, L, 2, H, T, K) of questions (Q, T), instead of their states."""
        memory = images if isinstance(images, Memory) else self.project_images(images)
        rows = (memory.items, -1, ids.shape[1])
        layers = self._run("question_encoder", ids.view(rows), mask.view(rows), *flatten_memory(memory))
        stacked = torch.stack([tensor.flatten(0, 1) for tensor in layers], 1)  # (Q, 2 * L, H, T, K)
        return stacked.view(len(ids), -1, 2, *stacked.shape[2:])

    def prepare_answers(self, questions: Tensor, mask: Tensor, capacity: int) -> SessionFactory:
        """Return a factory of decoding sessions over questions."""
        return self._make_factory(_answer_memory(questions, mask), self.config.answer_decoder)

    def rank_answers(
        self,
        questions: Tensor,
        mask: Tensor,
        candidates: Sequence[Sequence[int]],
        shortlist: int | None,
        smoothing: float,
    ) -> Tensor:
        """Return the log-probabilities (Q, candidates) of complete answers to questions."""
        decoder = _StepDecoder(
            memory=_answer_memory(questions, mask), step=self.graphs["decoder_step"], config=self.config.answer_decoder
        )
        return rank_answers(decoder, candidates, shortlist=shortlist, smoothing=smoothing)

    def embed_images(self, states: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (I, E) of image states (I, M, D_v)."""
        return self._run("image_embedding", states)[0]

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the L2-normalized embeddings (B, E) of texts (B, T)."""
        return self._run("text_embedding", ids, mask)[0]

    def match(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the probability (B,) that texts (B, T) match images."""
        return self._match_logits(ids, mask, images).softmax(-1)[:, 1]

    def match_log_odds(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        """Return the log-odds (B,) that texts (B, T) match images."""
        logits = self._match_logits(ids, mask, images)
        return logits[:, 1] - logits[:, 0]

    def compare_logits(self, ids: Tensor, mask: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return the logits (B, classes) of statements (B, T) about pairs of images."""
        rows = (len(left), -1, ids.shape[1])
        memory = self._run("image_memory", left, right)
        return self._run("compare", ids.view(rows), mask.view(rows), *memory)[0].flatten(0, 1)

    def ground(self, ids: Tensor, mask: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, 4) of expressions (B, T), as fractions of the image size, and log-probabilities (B,)."""
        config, rows = self.config, (len(states), -1, ids.shape[1])
        memory = self._run("image_memory", states)
        *layers, box_mask = self._run("expression_encoder", ids.view(rows), mask.view(rows), states, *memory)
        bias = padding_bias(box_mask.flatten(0, 1), torch.float32)
        joined = to_memory([tensor.flatten(0, 1) for tensor in layers], bias)
        session = self._make_factory(joined, config.grounded_text)(list(range(len(ids))))
        start = ids.new_full((len(ids), 1), config.box_start_id)
        box_ids = torch.arange(config.box_start_id + 1, config.box_start_id + 2 + config.box_bins)
        numbers, logprob = decode_boxes(session, start, box_ids, config.box_reading)
        x, y, width, height = (numbers / config.box_bins).unbind(1)
        edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        return edges.clamp(0, 1), logprob

    def _match_logits(self, ids: Tensor, mask: Tensor, images: Tensor | Memory) -> Tensor:
        memory = images if isinstance(images, Memory) else self.project_images(images)
        rows = (memory.items, -1, ids.shape[1])
        return self._run("match", ids.view(rows), mask.view(rows), *flatten_memory(memory))[0].flatten(0, 1)

    def _make_factory(self, memory: Memory, config: TextConfig) -> SessionFactory:
        step = self.graphs["decoder_step"]

        def start(items: list[int]) -> Session:
            return GraphSession(step, config, memory.subset(items))

        return start

    def _run(self, role: str, *inputs: Tensor) -> list[Tensor]:
        return run_graph(self.graphs[role], inputs)

    def _remedy(self, capability: type[object]) -> str:
        return "export the task that it belongs to"


class GraphSession:
    """A decoding run over an exported decoder step; see [`Session`][openblip.decoding.protocol.Session].

    Args:
        step: Runner of the decoder step.
        config: Configuration of the decoder.
        memory: Cross-attention keys and values of the items.
    """

    def __init__(self, step: Runner, config: TextConfig, memory: Memory) -> None:
        self.graph = step
        self.memory = memory
        self.keys = self.values = _empty_cache(config, memory.items)

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (rows, t) to all rows; return the logits (rows, V) of the next token."""
        rows = ids.view(*self.keys.shape[1:3], -1)
        inputs = (rows, self.keys, self.values, *_memory_inputs(self.memory))
        logits, self.keys, self.values = run_graph(self.graph, inputs)
        return logits.flatten(0, 1)

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        self.keys, self.values = (cache.expand(-1, -1, width, -1, -1, -1) for cache in (self.keys, self.values))

    def reorder(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]` of the same item."""
        shape = self.keys.shape
        self.keys, self.values = (cache.flatten(1, 2)[:, rows].view(shape) for cache in (self.keys, self.values))

    def keep(self, items: Tensor) -> None:
        """Drop all items except these."""
        self.keys, self.values = self.keys[:, items], self.values[:, items]
        self.memory = self.memory.select(items)


@dataclass(frozen=True, kw_only=True)
class _StepDecoder(PackedDecoder):
    """Packed texts over a decoder step: each token's text becomes a row, together with the rows of equal length."""

    step: Runner
    config: TextConfig

    def logits(self, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Return the logits (I, T, V) after each token; see the base class."""
        results = torch.empty(self.items, len(ids), self.config.vocab_size)
        for length in sorted(set(positions.tolist())):
            nodes = (positions == length).nonzero()[:, 0]
            texts = torch.stack([ids[visible[node]] for node in nodes])  # (W, length + 1)
            cache = _empty_cache(self.config, self.items).expand(-1, -1, len(nodes), -1, -1, -1)
            rows = texts.expand(self.items, -1, -1)
            results[:, nodes] = run_graph(self.step, (rows, cache, cache, *_memory_inputs(self.memory)))[0]
        return results


def run_graph(runner: Runner, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a graph on tensors.

    Args:
        runner: The graph.
        inputs: Its inputs.

    Returns:
        Its outputs.
    """
    return [torch.from_numpy(output) for output in runner([tensor.contiguous().numpy() for tensor in inputs])]


def _empty_cache(config: TextConfig, items: int) -> Tensor:
    return torch.empty(config.depth, items, 1, config.heads, 0, config.width // config.heads)


def _memory_inputs(memory: Memory) -> list[Tensor]:
    """Return the mask of a memory, if it has one, and its keys and values."""
    mask = [] if memory.bias is None else [(memory.bias[:, 0, 0] == 0).long()]
    return [*mask, *flatten_memory(memory)]


def _answer_memory(questions: Tensor, mask: Tensor) -> Memory:
    if questions.ndim != 6:
        raise InputError(f"questions must be the output of encode_questions, got shape {tuple(questions.shape)}")
    return to_memory(questions.flatten(1, 2).unbind(1), padding_bias(mask, torch.float32))
