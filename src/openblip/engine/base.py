"""Base class of the engines: the capabilities it supports, as one set."""

from __future__ import annotations

import re
from typing import cast

import torch

from openblip.engine.protocols import CapabilityT
from openblip.errors import InputError


class BaseEngine:
    """Common part of all engines; see [`Engine`][openblip.engine.protocols.Engine].

    Args:
        device: Device of the results.
        capabilities: Protocols of [`protocols`][openblip.engine.protocols] that the engine supports with its model.
    """

    name: str
    capabilities: frozenset[type[object]]

    def __init__(self, device: torch.device, capabilities: frozenset[type[object]]) -> None:
        self.device = device
        self.capabilities = capabilities

    def supports(self, capability: type[object]) -> bool:
        """Return whether this engine, with its model, implements a protocol of `openblip.engine.protocols`."""
        return capability in self.capabilities

    def require(self, capability: type[CapabilityT]) -> CapabilityT:
        """Return this engine, typed as a protocol of `openblip.engine.protocols`.

        Raises:
            InputError: The engine does not support the protocol; the message names a remedy.
        """
        if not self.supports(capability):
            words = re.sub(r"(?<!^)(?=[A-Z])", " ", capability.__name__).lower()
            raise InputError(f"engine={self.name!r} does not support {words}: {self._remedy(capability)}")
        return cast(CapabilityT, self)

    def _remedy(self, capability: type[object]) -> str:
        return "load the model with engine='torch'"
