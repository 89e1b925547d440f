"""The parity report: exported graphs and results against PyTorch.

Each graph runs on random inputs of two sizes that differ from the example. End to end, the pipelines of the package run
the exported graphs and the model on the same generated images, with greedy decoding and with beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.checkpoints.read import LoadedModel
from openblip.decoding import Hypothesis
from openblip.engine.eager import EagerEngine
from openblip.engine.protocols import Captions
from openblip.export.engine import GraphEngine, run_graph
from openblip.export.graphs import Graph
from openblip.export.runtime import Runner
from openblip.io.jsonlines import Json
from openblip.pipelines.base import Prepared, TaskModel
from openblip.pipelines.caption import CaptionPipeline, Prompt
from openblip.pipelines.grounding import GroundingPipeline
from openblip.pipelines.nlvr import NlvrPipeline
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.pipelines.vqa import VqaPipeline
from openblip.tasks import TaskName

TOLERANCE = 1e-4
"""Largest difference at fp32: absolute, or relative to the largest value of an output above 1."""

_SIZES = (
    {"images": 2, "width": 3, "texts": 3, "tokens": 4, "past": 5, "memory": 6},
    {"images": 1, "width": 1, "texts": 1, "tokens": 1, "past": 0, "memory": 2},
)
_TEXTS = ("a dog on the grass", "two people and a red car", "is the sky blue?", "the large one on the left")


@dataclass(frozen=True)
class GraphParity:
    """The parity of a graph.

    Attributes:
        task: The task.
        role: Role of the graph.
        file: File of the graph.
        error: Largest difference between an output and PyTorch's, divided by the largest absolute value of the output
            if that is above 1.
    """

    task: str
    role: str
    file: str
    error: float


@dataclass(frozen=True)
class ResultParity:
    """The parity of results end to end.

    Attributes:
        task: The task.
        mode: How the results were computed, such as "3 beams".
        items: Number of results.
        equal: Number of equal results: the same tokens or, without tokens, the same choice.
        error: Largest difference between two probabilities, or between two coordinates as fractions of the image size.
        margins: For each unequal result, how close the decision was that differs: the difference between the two
            likeliest tokens at that step, between the scores of the two texts, or of the two choices.
    """

    task: str
    mode: str
    items: int
    equal: int
    error: float
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class ParityReport:
    """The parity of an exported folder with PyTorch.

    Attributes:
        runtime: "onnx" or "openvino".
        precision: How the weights are stored.
        graphs: The parity of each graph.
        results: The parity of results end to end.
    """

    runtime: str
    precision: str
    graphs: tuple[GraphParity, ...]
    results: tuple[ResultParity, ...]

    @property
    def passed(self) -> bool:
        """Whether all graphs agree within the tolerance, and the margins of unequal results are within it too."""
        return all(graph.error <= TOLERANCE for graph in self.graphs) and all(
            max((result.error, *result.margins)) <= TOLERANCE for result in self.results
        )

    def to_dict(self) -> dict[str, Json]:
        """Return the report as a dictionary for JSON.

        Returns:
            The fields, the tolerance, and whether the report passed.
        """
        return {"tolerance": TOLERANCE, "passed": self.passed, **asdict(self)}

    def to_text(self) -> str:
        """Return the report as a table.

        Returns:
            Lines of text.
        """
        lines = [f"Parity with PyTorch: {self.runtime}, weights in {self.precision}", ""]
        width = max(len(f"{graph.task} {graph.role}") for graph in self.graphs)
        lines += [f"{f'{graph.task} {graph.role}':<{width}}  error {graph.error:.1e}" for graph in self.graphs]
        lines.append("")
        for result in self.results:
            line = f"{result.task}, {result.mode}: {result.equal} of {result.items} equal, error {result.error:.1e}"
            if result.margins:
                line += f", margins of the others up to {max(result.margins):.1e}"
            lines.append(line)
        return "\n".join(lines) + "\n"


def compare_graph(graph: Graph, runner: Runner, task: TaskName, file: str) -> GraphParity:
    """Compare an exported graph with its module on random inputs.

    Args:
        graph: The graph.
        runner: The exported graph.
        task: The task.
        file: File of the graph.

    Returns:
        The parity.
    """
    error = 0.0
    generator = torch.Generator().manual_seed(0)
    for sizes in _SIZES:
        inputs = _random_inputs(graph, sizes, generator)
        with torch.inference_mode():
            expected = graph.module(*inputs)
        outputs = run_graph(runner, inputs)
        for output, reference in zip(outputs, (expected,) if isinstance(expected, Tensor) else expected, strict=True):
            assert output.shape == reference.shape, (graph.role, output.shape, reference.shape)
            if reference.numel():
                scale = max(1.0, float(reference.abs().max()))
                error = max(error, float((output - reference).abs().max()) / scale)
    return GraphParity(task, graph.role, file, error)


def compare_results(
    loaded: LoadedModel, task: TaskName, graphs: Mapping[str, Runner], images: Sequence[Image.Image] | None = None
) -> list[ResultParity]:
    """Compare the results of exported graphs with the model's.

    Args:
        loaded: The model that was exported.
        task: The task.
        graphs: Runner of each role.
        images: Images; by default generated ones.

    Returns:
        The parity of each mode.
    """
    reference = TaskModel(loaded, EagerEngine(loaded.model, torch.device("cpu"), torch.float32))
    exported = TaskModel(loaded, GraphEngine(graphs, loaded.config, task))
    sample = list(images) if images is not None else list(generate_images(4))
    return _COMPARISONS[task](reference, exported, sample)


def generate_images(count: int) -> Iterator[Image.Image]:
    """Yield colored noise of various scales and shapes. Every call yields the same images.

    Args:
        count: Number of images.

    Yields:
        RGB images.
    """
    generator = np.random.default_rng(0)
    for index in range(count):
        side = 2 + 3 * (index % 7)
        noise = generator.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
        yield Image.fromarray(noise).resize((300 + 20 * (index % 5), 260), Image.Resampling.BICUBIC)


def _random_inputs(graph: Graph, sizes: Mapping[str, int], generator: torch.Generator) -> list[Tensor]:
    inputs = []
    for port in graph.inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in port.axes]
        if not port.integer:
            inputs.append(torch.randn(shape, generator=generator))
        elif port.name.endswith("mask"):  # rows of various lengths, at least 1
            lengths = torch.randint(1, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
            inputs.append((torch.arange(shape[-1]) < lengths).long())
        else:
            text = next(module for name, module in graph.module.named_modules() if name.endswith("embeddings.word"))
            inputs.append(torch.randint(0, int(text.num_embeddings), shape, generator=generator))
    return inputs


def _compare_captions(reference: TaskModel, exported: TaskModel, images: list[Image.Image]) -> list[ResultParity]:
    results = []
    for num_beams in (1, 3):
        pipeline = CaptionPipeline(reference, num_beams=num_beams)
        batch = [pipeline.preprocess((image, None)) for image in images]
        expected = [found[0] for found in pipeline.forward(batch)]
        outputs = [found[0] for found in CaptionPipeline(exported, num_beams=num_beams).forward(batch)]
        equal, errors, margins = 0, [0.0], []
        for prepared, ours, theirs in zip(batch, expected, outputs, strict=True):
            if ours.ids == theirs.ids:
                equal += 1
                errors.append(abs(np.exp(ours.logprob) - np.exp(theirs.logprob)))
            elif num_beams == 1:
                margins.append(_greedy_margin(reference, prepared, ours, theirs))
            else:
                margins.append(abs(ours.score - theirs.score))
        mode = "greedy" if num_beams == 1 else f"{num_beams} beams"
        results.append(ResultParity("caption", mode, len(images), equal, float(max(errors)), tuple(margins)))
    return results


def _greedy_margin(model: TaskModel, prepared: Prepared[Prompt], ours: Hypothesis, theirs: Hypothesis) -> float:
    """Return the difference between the two likeliest tokens where two greedy texts diverge."""
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours.ids, theirs.ids, strict=False))]
    ids = [*prepared.text.ids, *shared]
    session = model.engine.require(Captions).prepare_captions(model.encode_images([prepared.image]), len(ids))([0])
    best = session.step(torch.tensor([ids])).log_softmax(-1).topk(2).values[0]
    return float(best[0] - best[1])


def _compare_answers(reference: TaskModel, exported: TaskModel, images: list[Image.Image]) -> list[ResultParity]:
    results = []
    closed = ("yes", "no", "a red car", "blue", "two")
    items = [(image, _TEXTS) for image in images]
    modes: dict[str, dict[str, Any]] = {"greedy": {"num_beams": 1}, "3 beams": {}, "closed list": {"answers": closed}}
    for mode, options in modes.items():
        pairs = _run_both(partial(VqaPipeline, **options), reference, exported, items)
        answers = [(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)]
        equal = [abs(a.probability - b.probability) for a, b in answers if a.text == b.text]
        margins = tuple(abs(a.probability - b.probability) for a, b in answers if a.text != b.text)
        results.append(ResultParity("vqa", mode, len(answers), len(equal), max(equal, default=0.0), margins))
    return results


def _compare_matches(reference: TaskModel, exported: TaskModel, images: list[Image.Image]) -> list[ResultParity]:
    pairs = _run_both(lambda model: RetrievalPipeline(model, _TEXTS), reference, exported, [(i, None) for i in images])
    results = []
    for mode, name in (("order by ITM", "probability"), ("order by ITC", "similarity")):
        equal, errors, margins = 0, [0.0], []
        for ours, theirs in pairs:
            scores = np.array([[getattr(match, name) for match in matches] for matches in (ours, theirs)])
            errors.append(float(np.abs(scores[0] - scores[1]).max()))
            orders = np.argsort(-scores, 1, kind="stable")
            if (orders[0] == orders[1]).all():
                equal += 1
            else:
                margins.append(float(np.diff(np.sort(scores[0])).min()))
        results.append(ResultParity("retrieval", mode, len(images), equal, max(errors), tuple(margins)))
    return results


def _compare_boxes(reference: TaskModel, exported: TaskModel, images: list[Image.Image]) -> list[ResultParity]:
    pairs = _run_both(GroundingPipeline, reference, exported, [(image, _TEXTS) for image in images])
    differences = []
    for image, (ours, theirs) in zip(images, pairs, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            differences.append(float(np.abs(np.subtract(a.edges, b.edges)).max()) / max(image.size))
    equal = sum(difference <= TOLERANCE for difference in differences)
    return [ResultParity("grounding", "boxes", len(differences), equal, max(differences))]


def _compare_statements(reference: TaskModel, exported: TaskModel, images: list[Image.Image]) -> list[ResultParity]:
    items = [(left, right, _TEXTS) for left, right in zip(images, [*images[1:], images[0]], strict=True)]
    pairs = _run_both(NlvrPipeline, reference, exported, items)
    comparisons = [(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)]
    errors = [abs(a.probability - b.probability) for a, b in comparisons]
    margins = tuple(abs(2 * a.probability - 1) for a, b in comparisons if a.label != b.label)
    return [ResultParity("nlvr", "statements", len(errors), len(errors) - len(margins), max(errors), margins)]


def _run_both(
    make: Callable[[TaskModel], Any], reference: TaskModel, exported: TaskModel, items: Sequence[Any]
) -> list[tuple[Any, Any]]:
    return list(zip(make(reference).run(items), make(exported).run(items), strict=True))


_COMPARISONS: Mapping[TaskName, Callable[[TaskModel, TaskModel, list[Image.Image]], list[ResultParity]]] = {
    "caption": _compare_captions,
    "vqa": _compare_answers,
    "retrieval": _compare_matches,
    "grounding": _compare_boxes,
    "nlvr": _compare_statements,
}
