"""A checkpoint layout as data: the names of a library for our tensors. Free of torch.

Names are written per module where the module is all that matters ("visual_encoder.norm" covers its weight and bias, and
the parts of an adapter in it). "#" stands for a layer number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Need = Literal["required", "optional", "derivable"]
Kind = Literal["name", "shared", "tied", "constant"]

# Prefixes of our names for training state, which no model has. A momentum twin is "momentum." and the name of its twin.
TRAINING = ("momentum.", "queue.")


@dataclass(frozen=True)
class Group:
    """Tensors that are present or absent together.

    Attributes:
        title: Name of the group in notes and errors.
        names: Their name of a tensor or module to ours.
        need: All tensors of a *required* group must be present. The tensors of an *optional* group must all be present
            or all be absent. Any tensor of a *derivable* group may be missing, because other tensors or the
            configuration determine it.
        kind: Meaning of a name on the left. `name` is the tensor itself. The other kinds repeat one: `shared` must
            equal the tensor on the right; `tied` should, and if it does not, the tensor on the right is used, with a
            warning; a `constant` ("=positions" and others on the right) is computed.
    """

    title: str
    names: Mapping[str, str]
    need: Need = "required"
    kind: Kind = "name"

    @property
    def training(self) -> bool:
        """Whether the group holds training state, which no model has."""
        return all(ours.startswith(TRAINING) for ours in self.names.values())


Target = tuple[Group, str]
"""A group, and the name of a tensor on the other side."""


class Table:
    """The names of one model in one family, for lookups from both sides.

    Attributes:
        family: Name of the family.
        task: Kind of the model.
        groups: The groups, in the order of the layout.
        targets: By their name, "#" for any layer, the group and our name.
    """

    def __init__(self, family: str, task: str, groups: Iterable[Group]) -> None:
        self.family = family
        self.task = task
        self.groups = tuple(groups)
        self.targets: dict[str, Target] = {}
        self._theirs: dict[str, dict[str, Target]] = {}
        for group in self.groups:
            targets = self._theirs.setdefault(group.title, {})
            for theirs, ours in group.names.items():
                self.targets[theirs] = (group, ours)
                targets.setdefault(ours, (group, theirs))  # of two names for one tensor, the first is the one to write

    def ours(self, theirs: str) -> Target | None:
        """Return the group of one of their names and our name for it, or `None` for an unknown name.

        Args:
            theirs: The name of a tensor, or of anything in one of the modules.
        """
        return _look_up(self.targets, theirs)

    def theirs(self, ours: str) -> list[Target]:
        """Return every group that holds one of our tensors, with its name there; the tensor itself comes first.

        Args:
            ours: The name of a tensor, or of anything in one of the modules.
        """
        targets = [target for names in self._theirs.values() if (target := _look_up(names, ours))]
        return sorted(targets, key=lambda target: target[0].kind != "name")

    def absent(self, names: Iterable[str]) -> list[str]:
        """Return the required names, "#" for any layer, of which `names` has not a single tensor."""
        present = {rule for name in names if (rule := _rule(self.targets, name))}
        required = (theirs for group in self.groups if group.need == "required" for theirs in group.names)
        return [theirs for theirs in required if theirs not in present]

    def distance(self, names: Collection[str]) -> int:
        """Return the distance of a set of names: unknown names, and required ones without a single tensor."""
        unknown = sum(_rule(self.targets, name) is None for name in names)
        return unknown + len(self.absent(names))


# The layer number of a name is its first number. Tables write it as "#"; other numbers they write out.
LAYER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]*)(?=\.|$)")


def _rule(targets: Mapping[str, Target], name: str) -> str | None:
    """Return the longest name in a table that `name` begins with, up to a dot."""
    any_layer = LAYER.sub("#", name, count=1)
    while name:
        if name in targets:
            return name
        if any_layer in targets:
            return any_layer
        name, any_layer = name.rpartition(".")[0], any_layer.rpartition(".")[0]
    return None


def _look_up(targets: Mapping[str, Target], name: str) -> Target | None:
    """Return the target of a name, with the layer number and the parts below the module filled in."""
    if (rule := _rule(targets, name)) is None:
        return None
    group, target = targets[rule]
    rest = name.split(".")[rule.count(".") + 1 :]
    layer = LAYER.search(name)
    return group, ".".join([target.replace("#", layer[0]) if layer and "#" in rule else target, *rest])


def prefixed(names: Mapping[str, str], theirs: str, ours: str) -> dict[str, str]:
    """Return renames below a prefix on each side. An empty prefix adds nothing."""
    their_prefix, our_prefix = (f"{prefix}." if prefix else "" for prefix in (theirs, ours))
    return {their_prefix + name: our_prefix + target for name, target in names.items()}


def merged(*renames: Mapping[str, str]) -> dict[str, str]:
    """Return several sets of renames as one.

    Raises:
        ValueError: If a name is in two of them.
    """
    names: dict[str, str] = {}
    for group in renames:
        if duplicates := names.keys() & group.keys():
            raise ValueError(f"names must be unique, got {sorted(duplicates)} twice")
        names.update(group)
    return names
