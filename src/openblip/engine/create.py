"""Choice and creation of the engine that runs a model. `docs/speed.md` has the figures behind "auto"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from openblip.defaults import EngineName, Precision
from openblip.engine import int8
from openblip.engine.choice import has_openvino
from openblip.engine.compiled import CompiledEngine
from openblip.engine.device import check_available
from openblip.engine.eager import EagerEngine
from openblip.engine.openvino import CAPABILITIES, OpenVinoEngine
from openblip.engine.protocols import Engine
from openblip.errors import InputError
from openblip.io.cache import cache_folder
from openblip.model.config import ModelConfig
from openblip.model.precision import DTYPES
from openblip.tasks import did_you_mean

ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_engine(engine: str, precision: str, device: torch.device, *, calibrated: bool = False) -> None:
    """Check that engine, precision and device go together, and that the device is available.

    Args:
        engine: Name of the engine, or "auto".
        precision: Name of the precision.
        device: Device to run on.
        calibrated: Whether there are calibration images.

    Raises:
        InputError: An unknown name, a combination that does not exist, or a device that PyTorch cannot use here.
    """
    if engine not in ENGINES:
        hint = did_you_mean(engine, ENGINES)
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}{hint}")
    if precision not in PRECISIONS:
        hint = did_you_mean(precision, (*PRECISIONS, "auto"))
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}{hint}")
    if engine == "openvino" and device.type != "cpu":
        raise InputError(f"device must be 'cpu' with engine='openvino', got '{device}'")
    if engine == "openvino" and precision == "fp16":
        raise InputError("precision must be fp32, bf16 or int8 with engine='openvino', got 'fp16'")
    if calibrated and (engine not in ("auto", "openvino") or precision != "int8"):
        raise InputError(
            "calibration images need engine='openvino' and precision='int8', "
            f"got engine={engine!r} and precision={precision!r}"
        )
    if precision == "int8" and (device.type != "cpu" or engine == "compiled"):
        raise InputError(
            "precision='int8' needs a CPU and engine='torch' or 'openvino', "
            f"got device='{device}' and engine={engine!r}; on a GPU use fp16 or bf16"
        )
    check_available(device)


def create_engine(
    engine: str,
    precision: str,
    device: torch.device,
    model: nn.Module,
    config: ModelConfig,
    *,
    cache: Path | None = None,
    key: Callable[[], str],
    calibration: Tensor | None = None,
    bundled: bool = False,
) -> Engine:
    """Create the engine for a model. The model is converted, quantized or moved in place.

    Args:
        engine: Name of the engine, or "auto".
        precision: Name of the precision.
        device: Device to run on.
        model: The model.
        config: Its configuration.
        cache: Folder of models converted to OpenVINO. The default is in OpenBLIP's cache.
        key: Function that returns a name of the model's weights in the cache; called only if needed.
        calibration: Pixels (I, 3, S, S) of typical images, to quantize the image encoder.
        bundled: Whether the engine was chosen for a bundle, or by `precision="auto"`. Models that OpenVINO does not
            support then run in PyTorch, instead of raising an error.

    Returns:
        The engine.

    Raises:
        InputError: OpenVINO is not installed.
        ConfigError: OpenVINO does not support the model.
    """
    if bundled and config.task not in CAPABILITIES and engine in ("auto", "openvino"):
        engine = "torch"
    elif engine == "auto":
        engine = "openvino" if calibration is not None else choose_engine(precision, device, config)
    if engine == "openvino":
        cache = cache or cache_folder() / "openvino"
        return OpenVinoEngine(model, config, precision, cache=cache, key=key(), calibration=calibration)
    if engine == "compiled":
        return CompiledEngine(model, device, DTYPES[precision])
    if precision == "int8":
        return EagerEngine(int8.quantize(model), device, torch.float32)
    return EagerEngine(model, device, DTYPES[precision])


def choose_engine(precision: str, device: torch.device, config: ModelConfig) -> str:
    """Return the engine for "auto": OpenVINO for int8 on a CPU where it is installed, otherwise PyTorch."""
    suitable = precision == "int8" and device.type == "cpu" and config.task in CAPABILITIES
    return "openvino" if suitable and has_openvino() else "torch"


def default_batch_size(precision: str, device: torch.device) -> int:
    """Return the default number of images per batch: 64 on a GPU, 8 on a CPU, 4 in int8, where memory is scarce."""
    if device.type != "cpu":
        return 64
    return 4 if precision == "int8" else 8
