"""Conversion of a graph to ONNX, and storage of its weights in fp16 or int8."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from openblip._version import __version__
from openblip.export.graphs import Graph, Port
from openblip.export.libraries import import_onnx

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPSET = 18
"""The operator set of exported graphs. onnxruntime reads it since version 1.14."""

_MIN_VALUES = 256  # smaller tensors stay in fp32: a cast costs more than it saves
_MAX_SIZE = 1 << 20
_QUANTIZED = ["MatMul", "Gemm", "Gather"]


def convert_to_onnx(graph: Graph) -> ModelProto:
    """Convert a graph with `torch.onnx`'s exporter over `torch.export`.

    Args:
        graph: The graph.

    Returns:
        The model in float32, with the names and axes of the graph's ports, and without references to source files.

    Raises:
        InputError: A library of the extra `export` is missing.
    """
    for module in ("onnx", "onnxscript"):
        import_onnx(module)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.module,
            graph.example,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(graph),
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only without dynamo
    model: ModelProto = program.model_proto
    for node in model.graph.node:  # they name lines of the source
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for field in ("value_info", "metadata_props", "doc_string"):
        model.graph.ClearField(field)
    model.graph.name = graph.role
    model.producer_name, model.producer_version = "openblip", __version__
    for ports, values in ((graph.inputs, model.graph.input), (graph.outputs, model.graph.output)):
        assert [value.name for value in values] == [port.name for port in ports]
        for port, value in zip(ports, values, strict=True):
            _name_axes(port, value)
    import_onnx("onnx").checker.check_model(model)
    return model


def store_in_fp16(model: ModelProto) -> ModelProto:
    """Store large weights in fp16, each followed by a cast to float32.

    A tensor with values beyond the range of fp16 stays in fp32. Runtimes compute the casts once, when they load the
    model.

    Args:
        model: The model, which is modified.

    Returns:
        The model.
    """
    onnx = import_onnx("onnx")
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _MIN_VALUES:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_fp16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def quantize(model: ModelProto) -> ModelProto:
    """Quantize the linear layers and the embeddings to int8 by onnxruntime's dynamic quantization.

    Activations are quantized at run time, with one scale for all rows, so the result of a row depends slightly on its
    batch. Convolutions stay in fp32.

    Args:
        model: The model.

    Returns:
        The quantized model; a graph without linear layers is returned unchanged.

    Raises:
        InputError: onnxruntime is missing.
    """
    onnx, quantization = import_onnx("onnx"), import_onnx("onnxruntime.quantization")
    if not any(node.op_type in _QUANTIZED for node in model.graph.node):
        return model
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "quantized.onnx"
        quantization.quantize_dynamic(
            model, path, per_channel=True, op_types_to_quantize=_QUANTIZED, weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
        quantized: ModelProto = onnx.load(path)
    quantized.graph.ClearField("value_info")
    return quantized


def _dynamic_shapes(graph: Graph) -> tuple[Any, ...]:
    """Return the named axes of all inputs, nested as the arguments of the module are."""
    names = {axis for port in graph.inputs for axis in port.axes if isinstance(axis, str)}
    # With bounds, the exporter takes half the time to reason about sizes. The graph itself has none.
    dims = {name: torch.export.Dim(name, min=0, max=_MAX_SIZE) for name in names}
    shapes = tuple(
        {i: dims[axis] for i, axis in enumerate(port.axes) if isinstance(axis, str)} for port in graph.inputs
    )
    parameters = inspect.signature(graph.module.forward).parameters.values()
    fixed = sum(parameter.kind != inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return shapes if fixed == len(parameters) else (*shapes[:fixed], shapes[fixed:])


def _name_axes(port: Port, value: ValueInfoProto) -> None:
    dimensions = value.type.tensor_type.shape.dim
    assert len(dimensions) == len(port.axes), port.name
    for axis, dimension in zip(port.axes, dimensions, strict=True):
        if isinstance(axis, str):
            assert not dimension.HasField("dim_value"), f"{port.name}: the axis {axis} was fixed"
            dimension.dim_param = axis
        else:
            dimension.dim_value = axis


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter and the quantizer, which report irrelevant libraries and steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "root", "")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):  # noqa: PTH123
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
