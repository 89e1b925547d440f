"""Hub names for our modules: what ``state_dict``, ``load_state_dict`` and ``named_parameters`` speak.

The one table is :mod:`openblip.checkpoints.layouts.hub`. It names modules where it can, so that what an adapter puts
below ``query`` keeps a sensible name. State-dict hooks do the work, so that it also holds when a model is part of a
caller's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from torch import Tensor, nn

from openblip.checkpoints.layouts import hub
from openblip.errors import CheckpointError
from openblip.model.config import ModelKind

_INNER = "model."  # where a part keeps our module


class HubNamed(nn.Module):
    """A module whose parameters go by hub names; parts inside it that are ``HubNamed`` name their own."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by hub name."""
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            yield f"{prefix}.{_public(self, name)}" if prefix else _public(self, name), parameter


class HubPart(HubNamed):
    """A part that wraps one of our modules (``self.model``) under its hub names.

    ``task``, ``ours`` and ``theirs`` say which rows of the table name it: those of that task, below these prefixes.
    """

    model: nn.Module

    def __init__(self, task: ModelKind, ours: str = "", theirs: str = "") -> None:
        super().__init__()
        self._rows = (task, ours, theirs)
        hook(self, _rename_saved, _rename_given)

    def hub_name(self, name: str) -> str | None:
        """The hub's name for a tensor of ``self.model``; ``None`` for what was added outside any named module."""
        task, ours, theirs = self._rows
        try:
            return hub.hub_name(task, ours + name).removeprefix(theirs)
        except CheckpointError:
            return None

    def our_name(self, name: str) -> str | None:
        """The name in ``self.model`` of one of the hub's tensors; ``None`` for what is none."""
        task, ours, theirs = self._rows
        try:
            return hub.our_name(task, theirs + name).removeprefix(ours)
        except CheckpointError:
            return None

    def public(self, name: str) -> str:
        """The hub's name for a tensor of ``self``."""
        return self.hub_name(name.removeprefix(_INNER)) or name


def hook(module: nn.Module, after_saving: Callable[..., None], before_loading: Callable[..., None]) -> None:
    """Let functions change the state dict of a module: what it gives, and what it is given."""
    untyped: Any = module
    untyped.register_state_dict_post_hook(after_saving)
    untyped.register_load_state_dict_pre_hook(before_loading)


def _public(module: nn.Module, name: str) -> str:
    if isinstance(module, HubPart):
        return module.public(name)
    head, _, rest = name.partition(".")
    child = module._modules.get(head)
    return f"{head}.{_public(child, rest)}" if child is not None and rest else name


def _rename_saved(module: nn.Module, state: MutableMapping[str, Any], prefix: str, _metadata: object) -> None:
    assert isinstance(module, HubPart)
    for name in [name for name in state if name.startswith(prefix + _INNER)]:
        state[prefix + module.public(name.removeprefix(prefix))] = state.pop(name)


def _rename_given(
    module: nn.Module,
    state: MutableMapping[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Rename what is loaded; what is missing or misshapen is reported here, by the name that the caller knows."""
    assert isinstance(module, HubPart)
    own: dict[str, Tensor] = module.model.state_dict(keep_vars=True)
    for name in [name for name in state if name.startswith(prefix)]:
        if name.endswith("embeddings.position_ids"):  # a buffer that older files carry
            del state[name]
        elif (ours := module.our_name(name.removeprefix(prefix))) in own:
            state[f"{prefix}{_INNER}{ours}"] = state.pop(name)
    for ours, tensor in own.items():
        inner, public = f"{prefix}{_INNER}{ours}", f"{prefix}{module.public(_INNER + ours)}"
        if inner not in state:
            missing.append(public)
            state[inner] = tensor
        elif state[inner].shape != tensor.shape:
            given, needed = tuple(state[inner].shape), tuple(tensor.shape)
            errors.append(f"size mismatch for {public}: given {given}, needed {needed}")
            state[inner] = tensor
