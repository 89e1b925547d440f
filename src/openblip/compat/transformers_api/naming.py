"""Hub names for the modules of `openblip.model` in `state_dict`, `load_state_dict` and `named_parameters`.

Names come from the table in `openblip.checkpoints.layouts.hub`. The table names modules where possible, so that
parameters that an adapter adds below `query` get a meaningful name. Renaming is done by state-dict hooks, and therefore
also works if a model is part of another module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from torch import Tensor, nn

from openblip.checkpoints.layouts import hub
from openblip.errors import CheckpointError
from openblip.model.config import ModelKind

_INNER = "model."  # prefix of the wrapped module in a HubPart


class HubNamed(nn.Module):
    """A module whose parameters have hub names. Submodules that are `HubNamed` name their own parameters."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameters with their hub names.

        Args:
            prefix: Prefix of all names.
            recurse: Include the parameters of submodules.
            remove_duplicate: Yield shared parameters once.

        Yields:
            Parameters with their hub names.
        """
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            public_name = _public_name(self, name)
            yield f"{prefix}.{public_name}" if prefix else public_name, parameter


class HubPart(HubNamed):
    """A module that wraps a module of `openblip.model` (`self.model`) and names its parameters as on the hub.

    Args:
        task: Task whose rows of the name table apply.
        ours: Prefix of our names in the table.
        theirs: Prefix of hub names in the table.
    """

    model: nn.Module

    def __init__(self, task: ModelKind, ours: str = "", theirs: str = "") -> None:
        super().__init__()
        self._rows = (task, ours, theirs)
        add_state_dict_hooks(self, _to_hub_names, _to_our_names)

    def hub_name(self, name: str) -> str | None:
        """Return the hub name of a tensor of `self.model`, or `None` if the table does not name it.

        Args:
            name: Name in `self.model`.

        Returns:
            The hub name of a tensor of `self.model`, or `None` if the table does not name it.
        """
        task, ours, theirs = self._rows
        try:
            return hub.hub_name(task, ours + name).removeprefix(theirs)
        except CheckpointError:
            return None

    def our_name(self, name: str) -> str | None:
        """Return the name in `self.model` of a hub tensor, or `None` if the table does not contain it.

        Args:
            name: Name on the hub.

        Returns:
            The name in `self.model` of a hub tensor, or `None` if the table does not contain it.
        """
        task, ours, theirs = self._rows
        try:
            return hub.our_name(task, theirs + name).removeprefix(ours)
        except CheckpointError:
            return None

    def public_name(self, name: str) -> str:
        """Return the hub name of a tensor of `self`; tensors that the table does not name keep their name.

        Args:
            name: Name in `self`.

        Returns:
            The hub name of a tensor of `self`; tensors that the table does not name keep their name.
        """
        return self.hub_name(name.removeprefix(_INNER)) or name


def add_state_dict_hooks(
    module: nn.Module, after_saving: Callable[..., None], before_loading: Callable[..., None]
) -> None:
    """Register functions that change a module's state dict after it is saved and before it is loaded.

    Args:
        module: The module.
        after_saving: Changes the state dict after it is saved.
        before_loading: Changes the state dict before it is loaded.
    """
    untyped: Any = module  # torch's stubs declare other signatures
    untyped.register_state_dict_post_hook(after_saving)
    untyped.register_load_state_dict_pre_hook(before_loading)


def _public_name(module: nn.Module, name: str) -> str:
    if isinstance(module, HubPart):
        return module.public_name(name)
    head, _, rest = name.partition(".")
    child = module._modules.get(head)
    return f"{head}.{_public_name(child, rest)}" if child is not None and rest else name


def _to_hub_names(module: nn.Module, state: MutableMapping[str, Any], prefix: str, _metadata: object) -> None:
    assert isinstance(module, HubPart)
    for name in [name for name in state if name.startswith(prefix + _INNER)]:
        state[prefix + module.public_name(name.removeprefix(prefix))] = state.pop(name)


def _to_our_names(
    module: nn.Module,
    state: MutableMapping[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Rename loaded tensors. Report missing and misshapen tensors here, by the names in the file."""
    assert isinstance(module, HubPart)
    expected: dict[str, Tensor] = module.model.state_dict(keep_vars=True)
    for name in [name for name in state if name.startswith(prefix)]:
        if name.endswith("embeddings.position_ids"):  # a buffer in older files
            del state[name]
            continue
        our_name = module.our_name(name.removeprefix(prefix))
        if our_name in expected:
            state[f"{prefix}{_INNER}{our_name}"] = state.pop(name)
    for our_name, tensor in expected.items():
        inner_name = f"{prefix}{_INNER}{our_name}"
        public_name = prefix + module.public_name(_INNER + our_name)
        if inner_name not in state:
            missing.append(public_name)
            state[inner_name] = tensor
        elif state[inner_name].shape != tensor.shape:
            shape, expected_shape = tuple(state[inner_name].shape), tuple(tensor.shape)
            errors.append(f"size mismatch for {public_name}: expected {expected_shape}, got {shape}")
            state[inner_name] = tensor
