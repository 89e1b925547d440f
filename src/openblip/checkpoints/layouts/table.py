"""A checkpoint layout as data: whose name for a tensor is which of ours. Free of torch.

Names are given per module where a module is all there is to say ("visual_encoder.norm" covers its weight and bias, and
whatever an adapter may have put inside it); "#" stands for a layer number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Need = Literal["required", "optional", "derivable"]
Kind = Literal["name", "shared", "tied", "constant"]

# Where training state goes: names of ours that no model has. A momentum twin is "momentum." and the name of its twin.
TRAINING = ("momentum.", "queue.")


@dataclass(frozen=True)
class Group:
    """Tensors that come and go together.

    ``need``: a *required* group must be complete; an *optional* one is whole or absent; of a *derivable* one any part
    may be missing, because other tensors or the configuration tell it.

    ``kind``: what a name on the left stands for. ``name`` is the tensor itself. The others repeat something: ``shared``
    must equal the tensor on the right; ``tied`` should, and where it does not the tensor on the right wins, with a
    warning; a ``constant`` ("=positions" and the like on the right) is computed.
    """

    title: str
    names: Mapping[str, str]
    need: Need = "required"
    kind: Kind = "name"

    @property
    def training(self) -> bool:
        """Whether the group holds training state, which no model keeps."""
        return all(ours.startswith(TRAINING) for ours in self.names.values())


class Table:
    """One model of one family: its groups, looked up from either side."""

    def __init__(self, family: str, task: str, groups: Iterable[Group]) -> None:
        self.family = family
        self.task = task
        self.groups = tuple(groups)
        self._ours = _Tree()
        self._theirs: dict[str, _Tree] = {}
        for group in self.groups:
            there = self._theirs.setdefault(group.title, _Tree())
            for theirs, ours in group.names.items():
                self._ours.add(theirs, (group, ours))
                if ours not in there:  # of two names for one tensor, the first is the one to write
                    there.add(ours, (group, theirs))

    def ours(self, theirs: str) -> tuple[Group, str] | None:
        """Our name for one of theirs, and the group it belongs to; ``None`` for an unknown name."""
        return self._ours.find(theirs)

    def theirs(self, ours: str) -> list[tuple[Group, str]]:
        """Every group that holds one of our tensors, with its name there; the tensor itself before its repeats."""
        found = [match for there in self._theirs.values() if (match := there.find(ours))]
        return sorted(found, key=lambda match: match[0].kind != "name")

    def absent(self, names: Iterable[str]) -> list[str]:
        """Required names, "#" for any layer, of which a set of names has not a single tensor."""
        return self._absent({self._ours.rule(name) for name in names})

    def misfit(self, names: Iterable[str]) -> int:
        """How far a set of names is from this table: unknown names, and required ones without a single tensor."""
        rules = [self._ours.rule(name) for name in names]
        return rules.count(None) + len(self._absent(set(rules)))

    def _absent(self, seen: Collection[str | None]) -> list[str]:
        required = (theirs for group in self.groups if group.need == "required" for theirs in group.names)
        return [theirs for theirs in required if theirs not in seen]


class _Tree:
    """Names by their dotted parts; the longest known beginning of a name decides, the rest is carried over."""

    def __init__(self) -> None:
        self._root: dict[Any, Any] = {}

    def __contains__(self, rule: str) -> bool:
        node: Any = self._root
        for part in rule.split("."):
            node = node.get(part, {})
        return None in node

    def add(self, rule: str, target: tuple[Group, str]) -> None:
        node = self._root
        for part in rule.split("."):
            node = node.setdefault(part, {})
        node[None] = (rule, target)

    def find(self, name: str) -> tuple[Group, str] | None:
        if (found := self._walk(name)) is None:
            return None
        (_, (group, template)), number, rest = found
        return group, ".".join([template if number is None else template.replace("#", number), *rest])

    def rule(self, name: str) -> str | None:
        """The rule that a name falls under."""
        return None if (found := self._walk(name)) is None else found[0][0]

    def _walk(self, name: str) -> tuple[tuple[str, tuple[Group, str]], str | None, list[str]] | None:
        node, number, best = self._root, None, None
        parts = name.split(".")
        for index, part in enumerate(parts):
            if part in node:
                node = node[part]
            elif "#" in node and part.isdecimal() and str(int(part)) == part:
                node, number = node["#"], part
            else:
                break
            if None in node:
                best = (node[None], number, parts[index + 1 :])
        return best


def prefixed(names: Mapping[str, str], theirs: str, ours: str) -> dict[str, str]:
    """The same renames below a prefix on either side; an empty prefix adds nothing."""
    return {_join(theirs, left): _join(ours, right) for left, right in names.items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def merged(*parts: Mapping[str, str]) -> dict[str, str]:
    """Several sets of renames as one; a name must not be given twice."""
    whole: dict[str, str] = {}
    for part in parts:
        if twice := whole.keys() & part.keys():
            raise ValueError(f"named twice: {sorted(twice)}")
        whole.update(part)
    return whole
