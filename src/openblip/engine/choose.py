"""Which engine runs a model. ``docs/engines.md`` has the measurements that "auto" follows."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from openblip.engine import int8
from openblip.engine.base import Engine
from openblip.engine.compiled import CompiledEngine
from openblip.engine.eager import EagerEngine
from openblip.engine.openvino import SERVED, OpenVinoEngine
from openblip.errors import InputError
from openblip.model.config import ModelConfig

Name = Literal["auto", "torch", "compiled", "openvino"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
ENGINES: tuple[str, ...] = get_args(Name)
PRECISIONS: tuple[str, ...] = get_args(Precision)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check(engine: str, precision: str, device: torch.device, *, calibrated: bool = False) -> None:
    """Raise :class:`InputError` for an engine, a precision or a combination of them that there is not."""
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; one of {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; one of {', '.join(PRECISIONS)}")
    if engine == "openvino" and device.type != "cpu":
        raise InputError("engine='openvino' runs on the CPU: leave device at 'cpu'")
    if engine == "openvino" and precision == "fp16":
        raise InputError("engine='openvino' computes in fp32, bf16 or int8, not fp16")
    if calibrated and (engine not in ("auto", "openvino") or precision != "int8"):
        raise InputError("calibration pictures belong to engine='openvino', precision='int8'")
    if precision == "int8" and (device.type != "cpu" or engine == "compiled"):
        raise InputError("precision='int8' is for the CPU, by engine 'torch' or 'openvino'; a GPU takes fp16 or bf16")


def make(
    engine: str,
    precision: str,
    device: torch.device,
    model: nn.Module,
    config: ModelConfig,
    *,
    cache: Path,
    key: Callable[[], str],
    calibration: Tensor | None = None,
    bundled: bool = False,
) -> Engine:
    """The engine for a model.

    ``key`` gives what names the model's weights in the ``cache`` of converted parts;
    ``calibration`` are pixels (B, 3, S, S). A ``bundled`` model that OpenVINO does not serve runs by plain PyTorch: the
    engine was chosen for the bundle."""
    if bundled and config.task not in SERVED and engine in ("auto", "openvino"):
        engine = "torch"
    elif engine == "auto":
        engine = "openvino" if calibration is not None else choose(precision, device, config)
    if engine == "openvino":
        return OpenVinoEngine(model, config, precision, cache=cache, key=key(), calibration=calibration)
    if engine == "compiled":
        return CompiledEngine(model, device, _DTYPES[precision])
    if precision == "int8":
        return EagerEngine(int8.quantize(model), device, torch.float32)
    return EagerEngine(model, device, _DTYPES[precision])


def choose(precision: str, device: torch.device, config: ModelConfig) -> str:
    """The engine that "auto" stands for: OpenVINO for int8 on a CPU where it is installed, else plain PyTorch."""
    installed = find_spec("openvino") is not None and find_spec("nncf") is not None
    fits = precision == "int8" and device.type == "cpu" and config.task in SERVED
    return "openvino" if fits and installed else "torch"


def batch_size(precision: str, device: torch.device) -> int:
    """Pictures to compute together where nobody says: on a CPU a few suffice, and in 8 bits what counts is memory."""
    if device.type != "cpu":
        return 64
    return 4 if precision == "int8" else 8
