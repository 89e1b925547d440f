"""Runs the graphs of an exported folder, for the parity report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from openblip.engine.openvino.compiled import import_extra
from openblip.export.libraries import import_onnx

Array: TypeAlias = NDArray[Any]
Runner: TypeAlias = Callable[[Sequence[Array]], list[Array]]
"""A graph: inputs in the order of its ports to outputs in the order of its ports."""


def load_onnx(path: Path) -> Runner:
    """Return a runner of an ONNX file.

    Args:
        path: The `.onnx` file.

    Returns:
        The runner.

    Raises:
        InputError: onnxruntime is not installed.
    """
    onnxruntime = import_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(inputs: Sequence[Array]) -> list[Array]:
        outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs

    return run


def load_openvino(path: Path) -> Runner:
    """Return a runner of an OpenVINO file, which computes in fp32 except with int8 weights.

    Args:
        path: The `.xml` file.

    Returns:
        The runner.

    Raises:
        InputError: OpenVINO is not installed.
    """
    core = import_extra("openvino").Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)

    def run(inputs: Sequence[Array]) -> list[Array]:
        results = compiled([np.ascontiguousarray(array) for array in inputs])
        return [np.array(results[i]) for i in range(len(results))]

    return run


LOADERS: Mapping[str, Callable[[Path], Runner]] = {"onnx": load_onnx, "openvino": load_openvino}
"""Loads a graph file of each runtime."""
