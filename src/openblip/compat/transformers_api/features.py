"""What processors return: a dictionary whose entries are attributes too, and which moves between devices."""

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
    """Model inputs by name; ``tensor_type`` "pt" or "np" turns lists into tensors or arrays."""

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(dict(data or {}))
        self.convert_to_tensors(tensor_type)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Turn every entry into a tensor ("pt") or array ("np"), in place."""
        if tensor_type not in TENSOR_TYPES:
            raise InputError(f"return_tensors={tensor_type!r}: 'pt', 'np' or None")
        if tensor_type is not None:
            self.data = {name: _converted(name, value, tensor_type) for name, value in self.data.items()}
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move tensors to a device and cast floating ones to a dtype, in place: ``.to("cuda", torch.float16)``.

        Ids and masks keep their type.
        """
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            if not isinstance(args[0], str | int | torch.device):
                raise InputError(f"to() takes a device and a dtype, not {args[0]!r}")
            device = args[0]
        for name, value in self.data.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                self.data[name] = value.to(*args, **kwargs)
            elif isinstance(value, Tensor) and device is not None:
                self.data[name] = value.to(device=device, non_blocking=kwargs.get("non_blocking", False))
        return self

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str):
            raise KeyError(f"entries have names: {', '.join(self.data)}")
        return self.data[name]

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(name)


def _converted(name: str, value: Any, tensor_type: str) -> Any:
    try:
        return _tensor(value) if tensor_type == "pt" else _array(value)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{name} holds rows of several sizes, which are no tensor: pass padding=True (texts), or let images be "
            "resized"
        ) from error


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if value and isinstance(value[0], Tensor):
        return torch.stack(list(value))
    if value and isinstance(value[0], np.ndarray):
        return torch.from_numpy(np.array(value))
    return torch.tensor(value)


def _array(value: Any) -> np.ndarray[Any, Any]:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)
