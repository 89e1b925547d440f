"""The device to run on, for inference and training alike."""

from __future__ import annotations

import torch

from openblip.errors import InputError


def resolve_device(name: str, *, cpu_only: bool = False) -> torch.device:
    """Return the device of a name.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" or "auto". "auto" is the first of CUDA, MPS and the CPU that is available.
        cpu_only: Whether the engine or precision runs on the CPU only; then "auto" is the CPU.

    Raises:
        InputError: PyTorch does not know the device.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise InputError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {name!r}") from error
    if cpu_only:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_available(device: torch.device) -> None:
    """Check that PyTorch can use the device on this machine.

    Raises:
        InputError: It cannot.
    """
    if device.type == "cuda":
        count = torch.cuda.device_count()
        available = (device.index or 0) < count
    else:
        count = int(torch.backends.mps.is_available())
        available = device.type != "mps" or count > 0
    if not available:
        raise InputError(
            f"device must be one that PyTorch can use here, got '{device}' where {count} are available; "
            "use 'cpu' or 'auto'"
        )
