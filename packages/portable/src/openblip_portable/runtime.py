"""Graphs in onnxruntime or OpenVINO behind one function: arrays in, arrays out, in the order of their names."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip_portable.errors import ExportError, InputError

Floats: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Array: TypeAlias = NDArray[Any]
Graph: TypeAlias = Callable[[Sequence[Array]], list[Floats]]
"""A loaded graph. Threads may call it at the same time."""


def default_threads() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_onnx(path: Path, threads: int, precision: str) -> Graph:
    """Load an `.onnx` file with onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: Number of threads that compute.
        precision: How weights are stored; without effect here.

    Returns:
        The graph.

    Raises:
        InputError: onnxruntime is not installed.
        ExportError: The file cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "this export needs onnxruntime, which is not installed: pip install 'openblip-portable[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has many types
        raise ExportError(f"{path} cannot be loaded: {error}") from error
    names = [port.name for port in session.get_inputs()]

    def run(inputs: Sequence[Array]) -> list[Floats]:
        try:
            outputs: list[Floats] = session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:  # the library has many types
            raise ExportError(f"{path} cannot be run: {error}") from error
        return outputs

    return run


def load_openvino(path: Path, threads: int, precision: str) -> Graph:
    """Load an `.xml` file with OpenVINO, on the CPU, with activations in fp32.

    Args:
        path: The file; its `.bin` is next to it.
        threads: Number of threads that compute.
        precision: How weights are stored; without effect here.

    Returns:
        The graph.

    Raises:
        InputError: OpenVINO is not installed.
        ExportError: The file cannot be loaded.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # no reports to the vendor
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "this export needs OpenVINO, which is not installed: pip install 'openblip-portable[openvino]'"
        ) from error
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # always set, because OpenVINO may otherwise round by itself
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except Exception as error:
        raise ExportError(f"{path} cannot be loaded: {error}") from error
    lock = threading.Lock()

    def run(inputs: Sequence[Array]) -> list[Floats]:
        with lock:
            try:
                results = compiled([np.ascontiguousarray(array) for array in inputs])
            except Exception as error:
                raise ExportError(f"{path} cannot be run: {error}") from error
            return [np.array(results[i]) for i in range(len(results))]

    return run


LOADERS: Mapping[str, Callable[[Path, int, str], Graph]] = {"onnx": load_onnx, "openvino": load_openvino}
