"""A converted part, compiled for this processor and called by any number of threads."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.errors import InputError
from openblip.extras import install_hint

# Inference precision by our precision. Always set, because OpenVINO may otherwise round fp32 by itself.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_GROUP_SIZE = "128"  # number of inputs that share a scale when activations are rounded; OpenVINO takes a string


class CompiledPart:
    """A converted part on disk, read and compiled on the first call. Threads may call it at the same time.

    Args:
        path: The converted part, an `.xml` file.
        precision: "fp32", "bf16" or "int8".
    """

    def __init__(self, path: Path, precision: str) -> None:
        self.path = path
        self.settings = {
            "INFERENCE_PRECISION_HINT": _precision_hint(path.stem, precision),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP_SIZE if precision == "int8" else "0",
        }
        self._compiled: Any = None
        self._idle_requests: list[Any] = []
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return copies of the outputs."""
        with self.run(*inputs) as outputs:
            return [output.clone() for output in outputs]

    @contextmanager
    def run(self, *inputs: Tensor) -> Iterator[list[Tensor]]:
        """Yield the outputs without a copy; they are valid inside the `with` block only."""
        with self._request() as request:
            tensors = [_share_tensor(tensor) for tensor in inputs]
            results = request.infer(tensors, share_inputs=True, share_outputs=True)
            # Drop the reference to the inputs, which can be as large as the memory of all images. OpenVINO has no
            # public way to do so and would keep it until the next call.
            request._inputs_data = None
            yield [_from_output(results[i]) for i in range(len(results))]

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """Yield an idle request, or a new one."""
        with self._lock:
            if self._compiled is None:
                core = import_extra("openvino").Core()
                self._compiled = core.compile_model(core.read_model(self.path), "CPU", self.settings)
            request = self._idle_requests.pop() if self._idle_requests else self._compiled.create_infer_request()
        try:
            yield request
        finally:
            with self._lock:
                self._idle_requests.append(request)


def _share_tensor(tensor: Tensor) -> Any:
    """Return an OpenVINO tensor over the memory of a tensor, or over a copy if it is not contiguous."""
    openvino = import_extra("openvino")
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        return openvino.Tensor(tensor.view(torch.int16).numpy(), openvino.Shape(tensor.shape), openvino.Type.bf16)
    return openvino.Tensor(tensor.numpy(), shared_memory=True)


def _from_output(array: NDArray[Any]) -> Tensor:
    """Return a tensor over the memory of an output. OpenVINO returns bf16 as float16, which no part computes in."""
    if array.dtype == np.float16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def run_per_image(part: CompiledPart, rows: Tensor) -> list[Tensor]:
    """Return the outputs of `part` for each row of its only input, computed one row at a time.

    A batch would not be faster, and OpenVINO never frees the memory of the largest batch.
    """
    results: list[Tensor] = []
    for index in range(len(rows)):
        with part.run(rows[index : index + 1]) as outputs:
            if not results:
                results = _allocate_like(outputs, len(rows))
            for result, output in zip(results, outputs, strict=True):
                result[index : index + 1] = output
    return results


def _allocate_like(outputs: list[Tensor], rows: int) -> list[Tensor]:
    """Return tensors shaped like `outputs` but with `rows` rows, in one block that the system can reclaim."""
    sizes = [rows * output.numel() for output in outputs]  # all outputs have one type
    pieces = torch.split(outputs[0].new_empty(sum(sizes)), sizes)
    return [piece.view(rows, *output.shape[1:]) for piece, output in zip(pieces, outputs, strict=True)]


def _precision_hint(name: str, precision: str) -> str:
    """Return the precision that a part computes in.

    With int8 weights, few rows (the decoder step) are fastest in 8 bits, and many rows in bf16 where available.
    """
    if precision == "int8" and name != "step" and has_bf16():
        return "bf16"
    return HINTS[precision]


@functools.cache
def has_bf16() -> bool:
    """Return whether the processor computes in bf16."""
    return "BF16" in import_extra("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def import_extra(module: str) -> ModuleType:
    """Import OpenVINO or NNCF without their telemetry.

    Both start a process for each conversion that reports to their vendor, unless the package `openvino_telemetry` is
    missing; so it is hidden here. If the caller imported it already, that choice is kept.

    Raises:
        InputError: The library is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"engine='openvino' needs {module}, which is not installed: {install_hint('openvino')}"
        ) from error
