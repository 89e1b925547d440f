"""The output of processors: a dictionary of model inputs."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

from openblip.compat.transformers_api.tensors import check_tensor_type, convert, is_torch_tensor
from openblip.errors import InputError


class BatchFeature(UserDict[str, Any]):
    """Model inputs by name, which are also attributes.

    Args:
        data: Entries by name.
        tensor_type: "pt", "tf" or "jax" to convert entries to tensors, "np" for arrays.

    Raises:
        InputError: If an entry cannot be converted.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(dict(data or {}))
        self.convert_to_tensors(tensor_type)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Convert all entries in place.

        Args:
            tensor_type: "pt" for tensors of PyTorch, "tf" of TensorFlow, "jax" of JAX, "np" for arrays, `None` to
                convert nothing.

        Returns:
            The object itself.

        Raises:
            InputError: If an entry cannot be converted.
        """
        check_tensor_type(tensor_type)
        if tensor_type is not None:
            self.data = {name: convert(name, value, tensor_type) for name, value in self.data.items()}
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move tensors of PyTorch to a device, and cast floating-point tensors to a dtype, in place.

        Args:
            *args: Device and dtype.
            **kwargs: Arguments of `torch.Tensor.to`.

        Returns:
            The object itself.

        Raises:
            InputError: If an argument is neither a device nor a dtype.
        """
        import torch

        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            if not isinstance(args[0], str | int | torch.device):
                raise InputError(f"arguments of to() must be a device and a dtype, got {args[0]!r}")
            device = args[0]
        for name, value in self.data.items():
            if is_torch_tensor(value) and value.is_floating_point():
                self.data[name] = value.to(*args, **kwargs)
            elif is_torch_tensor(value) and device is not None:
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
