"""The output of processors: a dictionary of model inputs."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.errors import InputError

TENSOR_TYPES = (None, "pt", "np")


class BatchFeature(UserDict[str, Any]):
    """Model inputs by name, which are also attributes.

    Args:
        data: Entries by name.
        tensor_type: "pt" or "np" to convert entries to tensors or arrays.

    Raises:
        InputError: If an entry cannot be converted.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(dict(data or {}))
        self.convert_to_tensors(tensor_type)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Convert all entries in place.

        Args:
            tensor_type: "pt" for tensors, "np" for arrays, `None` to convert nothing.

        Returns:
            The object itself.

        Raises:
            InputError: If an entry cannot be converted.
        """
        if tensor_type not in TENSOR_TYPES:
            raise InputError(f"return_tensors must be 'pt', 'np' or None, got {tensor_type!r}")
        if tensor_type is not None:
            self.data = {name: _convert(name, value, tensor_type) for name, value in self.data.items()}
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move tensors to a device, and cast floating-point tensors to a dtype, in place.

        Args:
            *args: Device and dtype.
            **kwargs: Arguments of `torch.Tensor.to`.

        Returns:
            The object itself.

        Raises:
            InputError: If an argument is neither a device nor a dtype.
        """
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            if not isinstance(args[0], str | int | torch.device):
                raise InputError(f"arguments of to() must be a device and a dtype, got {args[0]!r}")
            device = args[0]
        for name, value in self.data.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                self.data[name] = value.to(*args, **kwargs)
            elif isinstance(value, Tensor) and device is not None:
                self.data[name] = value.to(device=device, non_blocking=kwargs.get("non_blocking", False))
        return self

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str):
            raise KeyError(f"key must be one of {', '.join(self.data)}, got {name!r}")
        return self.data[name]

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(name)


def _convert(name: str, value: Any, tensor_type: str) -> Any:
    try:
        if tensor_type == "pt":
            return _to_tensor(value)
        return value.numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"rows of {name} must have one size to become a tensor: pass padding=True for texts, or resize images"
        ) from error


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if value and isinstance(value[0], Tensor):
        return torch.stack(list(value))
    if value and isinstance(value[0], np.ndarray):
        return torch.from_numpy(np.array(value))
    return torch.tensor(value)
