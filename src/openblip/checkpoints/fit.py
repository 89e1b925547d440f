"""Stored tensors against a table: renamed, and held to it strictly. Nothing passes in silence."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openblip.checkpoints.layouts import Group, Table, nearest, starts
from openblip.checkpoints.storage import listed
from openblip.errors import CheckpointError
from openblip.model.config import ModelConfig


@dataclass
class Renamed:
    """A checkpoint in our names.

    ``tensors`` is the model, ``training`` the state beside it; ``repeats`` are further names of a tensor, ``constants``
    computed ones, both as (group, their name, what it stands for, tensor). ``origin`` maps our names to theirs.
    """

    table: Table
    source: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    training: dict[str, Tensor] = field(default_factory=dict)
    repeats: list[tuple[Group, str, str, Tensor]] = field(default_factory=list)
    constants: list[tuple[Group, str, str, Tensor]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)

    def name(self, ours: str) -> str:
        """Their name for one of our tensors, as the file has it or would have it."""
        return self.origin.get(ours) or next((theirs for _, theirs in self.table.theirs(ours)), ours)

    def names(self) -> list[str]:
        """Every name that the file has."""
        rest = [theirs for _, theirs, *_ in (*self.repeats, *self.constants)]
        return [*self.origin.values(), *rest, *self.unknown]

    def complaint(self, problems: Sequence[str]) -> CheckpointError:
        """The error that lists what is wrong, and says what the file is instead."""
        return CheckpointError(
            f"{self.source} does not fit a model for {self.table.task!r} in the {self.table.family} layout: tensors "
            f"{'; '.join(filter(None, problems))}. {fits(self.names(), self.table.task)}".rstrip()
        )

    def complaint_without(self, name: str) -> CheckpointError:
        """The same, where for lack of one tensor not even the sizes are known, and with them the names of all."""
        rules = [rule for rule in self.table.absent(self.names()) if not name.startswith(rule.replace("#", "0"))]
        return self.complaint([problem("missing", [name, *rules]), problem("unknown", self.unknown)])


def rename(stored: Mapping[str, Tensor], table: Table, source: str) -> Renamed:
    """Sort the tensors of a file by what a table says they are."""
    renamed = Renamed(table, source)
    for theirs, tensor in stored.items():
        match = table.ours(theirs)
        if match is None:
            renamed.unknown.append(theirs)
            continue
        group, ours = match
        if group.kind == "constant":
            renamed.constants.append((group, theirs, ours, tensor))
        elif group.kind != "name":
            renamed.repeats.append((group, theirs, ours, tensor))
        else:
            place = renamed.training if group.training else renamed.tensors
            if ours in place and not _same(place[ours], tensor):
                raise CheckpointError(f"{source}: {renamed.origin[ours]} and {theirs} are one tensor, yet they differ")
            place[ours] = tensor
            renamed.origin.setdefault(ours, theirs)
    return renamed


def check(
    renamed: Renamed, config: ModelConfig, wanted: Mapping[str, torch.Size], *, keeps_training: bool = False
) -> list[str]:
    """Hold a renamed checkpoint to the tensors that the model of ``config`` has; what to tell the user about it.

    Required groups must be complete, optional ones whole or absent, nothing unknown, no shape wrong, repeats equal.
    Raises one :class:`CheckpointError` that lists every offending name and says what the file does fit.
    """
    missing = [
        renamed.name(ours) for ours in wanted if ours not in renamed.tensors and _must_be_there(ours, renamed.table)
    ]
    unknown = list(renamed.unknown)
    unknown += [renamed.origin[ours] for ours in renamed.tensors if ours not in wanted]
    unknown += [theirs for _, theirs, ours, _ in renamed.repeats if ours not in wanted]
    halves, extra = _halves(renamed, wanted)
    problems = [
        problem("missing", missing),
        problem("unknown", unknown + extra),
        problem("of a wrong shape", _misshapen(renamed, wanted)),
        *halves,
    ]
    if found := list(filter(None, problems)):
        raise renamed.complaint(found)
    notes = _check_repeats(renamed)
    _check_constants(renamed, config)
    return notes + _report(renamed, wanted, "kept" if keeps_training else "dropped")


_OPTIONAL = ("optional", "name")


def _must_be_there(ours: str, table: Table) -> bool:
    """Whether a file must hold a tensor. It need not if its group is optional, or if the family has no name for it at
    all: the hub's matcher, whose temperature stands in ``config.json``."""
    places = table.theirs(ours)
    return bool(places) and all((group.need, group.kind) != _OPTIONAL for group, _ in places)


def _halves(renamed: Renamed, wanted: Collection[str]) -> tuple[list[str], list[str]]:
    """Optional groups of which only a part is there, as problems; and names in them that the model has no use for."""
    have: dict[str, set[str]] = {}
    for ours in renamed.training:
        group, _ = renamed.table.theirs(ours)[0]
        have.setdefault(group.title, set()).add(ours)
    for group, _, ours, _ in renamed.repeats:
        if group.need == "optional":
            have.setdefault(group.title, set()).add(ours)
    problems, extra = [], []
    for group in renamed.table.groups:
        if group.need != "optional" or not (present := have.get(group.title)):
            continue
        whole = _members(renamed.table, group, wanted)
        extra += [renamed.name(ours) for ours in sorted(present - whole.keys()) if group.training]
        if absent := [theirs for ours, theirs in whole.items() if ours not in present]:
            problems.append(f"{problem('missing', absent)} from an optional group, {group.title}, whole or absent")
    return problems, extra


def _members(table: Table, group: Group, wanted: Iterable[str]) -> dict[str, str]:
    """Every tensor that a group has beside a model with the tensors ``wanted``: our name -> theirs."""
    names = list(wanted)
    if group.training:
        names = [f"momentum.{ours}" for ours in names] + [o for o in group.names.values() if o.startswith("queue.")]
    members = {}
    for ours in names:
        for other, theirs in table.theirs(ours):
            if other.title == group.title:
                members[ours] = theirs
    return members


def _misshapen(renamed: Renamed, wanted: Mapping[str, torch.Size]) -> list[str]:
    wrong = [
        (renamed.origin[ours], tensor.shape, wanted[ours])
        for ours, tensor in renamed.tensors.items()
        if ours in wanted and tensor.shape != wanted[ours]
    ]
    wrong += [
        (theirs, tensor.shape, wanted[ours])
        for _, theirs, ours, tensor in renamed.repeats
        if ours in wanted and tensor.shape != wanted[ours]
    ]
    for ours, tensor in renamed.training.items():
        twin = ours.removeprefix("momentum.")
        if twin in wanted and tensor.shape != wanted[twin]:
            wrong.append((renamed.origin[ours], tensor.shape, wanted[twin]))
    wrong += _misshapen_queues(renamed, wanted)
    return [f"{name}: stored {tuple(there)}, needed {tuple(needed)}" for name, there, needed in wrong]


def _misshapen_queues(renamed: Renamed, wanted: Mapping[str, torch.Size]) -> list[tuple[str, torch.Size, torch.Size]]:
    """Queues may be of any length, but of one, and hold features as wide as the embeddings."""
    queues = {ours: tensor for ours, tensor in renamed.training.items() if ours.startswith("queue.")}
    if "queue.image" not in queues or "vision_proj.bias" not in wanted:
        return []
    width, length = wanted["vision_proj.bias"][0], queues["queue.image"].shape[-1]
    needed = {"image": (width, length), "text": (width, length), "ids": (1, length), "pointer": (1,)}
    return [
        (renamed.origin[ours], tensor.shape, torch.Size(needed[ours.removeprefix("queue.")]))
        for ours, tensor in queues.items()
        if tensor.shape != needed[ours.removeprefix("queue.")]
    ]


def _check_repeats(renamed: Renamed) -> list[str]:
    """Repeats must equal the tensor they repeat; tied ones that do not are overruled, with a warning."""
    notes = []
    for group, theirs, ours, tensor in renamed.repeats:
        if ours not in renamed.tensors or _same(renamed.tensors[ours], tensor):
            continue
        first = renamed.name(ours)
        if group.kind == "shared":
            raise CheckpointError(
                f"{renamed.source}: {theirs} and {first} must be one tensor in a model for {renamed.table.task!r}, yet "
                "they differ: encoder and decoder of this file were trained apart"
            )
        note = f"{theirs} differs from {first}, to which it is tied: {first} is used"
        warnings.warn(f"{renamed.source}: {note}", stacklevel=4)
        notes.append(note)
    return notes


def _check_constants(renamed: Renamed, config: ModelConfig) -> None:
    for _, theirs, rule, tensor in renamed.constants:
        if not _same(constant(rule, config), tensor):
            raise CheckpointError(
                f"{renamed.source}: {theirs} is not what a model for {renamed.table.task!r} computes there, so the "
                "weights beside it belong to another kind of model"
            )


def constant(rule: str, config: ModelConfig) -> Tensor:
    """A tensor that files store although the configuration tells it."""
    if rule == "=positions":
        return torch.arange(config.text.max_positions)[None]
    if rule == "=box_start":
        return torch.tensor([config.box_start_id])
    boxes = torch.arange(config.box_start_id + 1, config.box_start_id + 2 + config.box_bins)
    if rule == "=box_tokens":
        return boxes
    seen = torch.zeros(config.text.vocab_size)  # "=box_mask": what is added to logits so that only bins remain
    seen[boxes] = 1.0
    return (1.0 - seen) * -10000.0


def _report(renamed: Renamed, wanted: Collection[str], training: str) -> list[str]:
    """What was dropped or had to be derived, by group; ``training`` says what became of the training state."""
    groups = Counter(renamed.table.theirs(ours)[0][0].title for ours in renamed.training)
    notes = [f"training state, {training}: {title} ({count} tensors)" for title, count in groups.items()]
    there = {group.title for group, *_ in (*renamed.repeats, *renamed.constants)}
    for group in renamed.table.groups:
        if group.title in there:
            notes.append(f"checked and left out: {group.title}")
        elif group.kind in ("shared", "tied"):
            notes.append(f"not stored, derived: {group.title}")
        elif (group.need, group.kind) == _OPTIONAL and not group.training:
            absent = [ours for ours in group.names.values() if ours in wanted and ours not in renamed.tensors]
            notes += [f"not stored, left at its default: {group.title}"] if absent else []
    return notes


def problem(title: str, names: list[str]) -> str:
    """``"2 missing (a, b)"``, or nothing for no names."""
    return f"{len(names)} {title} ({listed(names)})" if names else ""


def fits(names: Collection[str], task: str | None = None) -> str:
    """A sentence that says what a set of tensor names is, and what to do with it; empty if that is ``task`` itself."""
    best, distance = nearest(names, served=False)
    if distance * 2 > len(names):
        return "It is no BLIP checkpoint that this version knows."
    if best.task == task:
        return ""
    what = f"{best.task!r} ({best.family})"
    is_it = f"It is a checkpoint for {what}" if distance == 0 else f"It is closest to a checkpoint for {what}"
    if best.family == "lavis" and best.task == "classification":
        return f"{is_it}, which has no counterpart here."
    if best.family in ("timm", "bert") or (task, best.task) in starts.RULES:
        return f"{is_it}: to start a model from it, use openblip.checkpoints.initialise."
    return f"{is_it}: load it with task={best.task!r}."


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())
