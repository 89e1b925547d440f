"""Graphs of the published shapes agree with PyTorch. The weights are random, because the shapes are what is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
import pytest
import torch

from openblip.export.graphs import EXPORTED_TASKS, build_graphs
from openblip.export.onnx import convert_to_onnx
from openblip.export.parity import TOLERANCE, compare_graph
from openblip.export.runtime import load_onnx
from openblip.model.build import build_model
from openblip.model.config import preset
from openblip.tasks import TaskName

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("task", EXPORTED_TASKS)
def test_graphs_of_published_shapes(task: TaskName, size: Literal["base", "large"], tmp_path: Path) -> None:
    if task == "grounding" and size == "large":
        pytest.skip("image and text must have the same width")
    torch.manual_seed(0)
    model = build_model(preset(task, size)).eval()
    for graph in build_graphs(model, task):
        path = tmp_path / "graph.onnx"
        onnx.save(convert_to_onnx(graph), path)
        parity = compare_graph(graph, load_onnx(path), task, path.name)
        print(f"{size} {task} {graph.role}: {path.stat().st_size / 1e6:.0f} MB, error {parity.error:.1e}")
        assert parity.error <= TOLERANCE
