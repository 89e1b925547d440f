"""Tensors of PyTorch, TensorFlow and JAX, told apart without importing a framework that the caller does not use."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.errors import InputError

TENSOR_TYPES = (None, "pt", "np", "tf", "jax")
"""Values of `return_tensors`."""

_CLASSES = {"torch": "Tensor", "tensorflow": "Tensor", "jax": "Array"}
_MODULES = {"pt": "torch", "tf": "tensorflow", "jax": "jax.numpy"}


def is_tensor(value: object) -> bool:
    """Return whether a value is a tensor of a framework.

    Args:
        value: Any value.

    Returns:
        Whether a value is a tensor of a framework.
    """
    modules = ((sys.modules.get(name), kind) for name, kind in _CLASSES.items())
    return any(module is not None and isinstance(value, getattr(module, kind, ())) for module, kind in modules)


def is_torch_tensor(value: object) -> bool:
    """Return whether a value is a tensor of PyTorch.

    Args:
        value: Any value.

    Returns:
        Whether a value is a tensor of PyTorch.
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_array(value: Any) -> NDArray[Any]:
    """Return a tensor, an array or nested lists as an array.

    Args:
        value: The values.

    Returns:
        The values as an array.
    """
    return value.detach().cpu().numpy() if is_torch_tensor(value) else np.asarray(value)


def check_tensor_type(tensor_type: str | None) -> None:
    """Raise for a value of `return_tensors` that does not exist.

    Args:
        tensor_type: The value.

    Raises:
        InputError: If there is no such tensor type.
    """
    if tensor_type not in TENSOR_TYPES:
        raise InputError(f"return_tensors must be 'pt', 'np', 'tf', 'jax' or None, got {tensor_type!r}")


def convert(name: str, value: Any, tensor_type: str) -> Any:
    """Return values as a tensor.

    Args:
        name: Name of the values in errors.
        value: A tensor, an array, or nested lists.
        tensor_type: "pt", "np", "tf" or "jax".

    Returns:
        The tensor or array.

    Raises:
        InputError: If rows differ in size, or the framework is not installed.
    """
    try:
        if tensor_type == "pt":
            return _to_torch(value)
        array = to_array(value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"rows of {name} must have one size to become a tensor: pass padding=True for texts, or resize images"
        ) from error
    if tensor_type == "np":
        return array
    try:
        framework = importlib.import_module(_MODULES[tensor_type])
    except ImportError as error:
        raise InputError(f"return_tensors={tensor_type!r} needs {_MODULES[tensor_type]}, which is missing") from error
    # Both would keep or truncate 64-bit numbers each in its own way; token ids need 32 bits.
    small = array.astype(np.int32) if array.dtype == np.int64 else array
    return framework.convert_to_tensor(small) if tensor_type == "tf" else framework.asarray(small)


def _to_torch(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if value and isinstance(value[0], torch.Tensor):
        return torch.stack(list(value))
    if value and isinstance(value[0], np.ndarray):
        return torch.from_numpy(np.array(value))
    return torch.tensor(value)
