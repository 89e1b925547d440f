"""Match the tensors of a file with a layout, strictly: a missing, unknown or misshapen tensor is an error."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from openblip.checkpoints.folder import join_names
from openblip.checkpoints.layouts import Group, Table, nearest, starts
from openblip.checkpoints.layouts.table import LAYER, TRAINING
from openblip.errors import CheckpointError
from openblip.model.config import ModelConfig


class Repeat(NamedTuple):
    """A tensor that a file stores although another tensor, or the configuration, determines it."""

    group: Group
    theirs: str
    """The name in the file."""
    target: str
    """Our name of the tensor that it repeats, or the rule that computes it."""
    tensor: Tensor


@dataclass
class MatchedCheckpoint:
    """The tensors of a checkpoint under our names.

    Attributes:
        table: The layout.
        source: Path of the checkpoint, for messages.
        tensors: The model's tensors.
        training: Training state.
        repeats: Further copies of a tensor.
        constants: Stored tensors that the configuration determines.
        unknown: Names that the layout does not have.
        origin: Our names to theirs.
    """

    table: Table
    source: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    training: dict[str, Tensor] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    constants: list[Repeat] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)

    def name(self, ours: str) -> str:
        """Return the file's name for one of our tensors, or the layout's name if the file does not have it."""
        return self.origin.get(ours) or next((theirs for _, theirs in self.table.theirs(ours)), ours)

    def names(self) -> list[str]:
        """Return all names in the file."""
        repeats = [repeat.theirs for repeat in (*self.repeats, *self.constants)]
        return [*self.origin.values(), *repeats, *self.unknown]

    def error(self, problems: Iterable[str]) -> CheckpointError:
        """Return the error that lists the problems and says which checkpoint the file is instead."""
        return CheckpointError(
            f"{self.source} does not fit a model for {self.table.task!r} in the {self.table.family} layout: tensors "
            f"{'; '.join(filter(None, problems))}. {describe_names(self.names(), self.table.task)}".rstrip()
        )

    def error_without(self, name: str) -> CheckpointError:
        """Return the error for a missing tensor that the sizes of the model are read from."""
        rules = [rule for rule in self.table.absent(self.names()) if not name.startswith(rule.replace("#", "0"))]
        return self.error([count_names("missing", [name, *rules]), count_names("unknown", self.unknown)])


def match(tensors: Mapping[str, Tensor], table: Table, source: str) -> MatchedCheckpoint:
    """Sort the tensors of a file by their meaning in a layout.

    Args:
        tensors: The tensors under their names in the file.
        table: The layout.
        source: Path of the file, for messages.

    Returns:
        The tensors under our names.

    Raises:
        CheckpointError: If two names of one tensor have different values.
    """
    matched = MatchedCheckpoint(table, source)
    for theirs, tensor in tensors.items():
        rule, any_layer = theirs, LAYER.sub("#", theirs, count=1)
        while rule and rule not in table.targets and any_layer not in table.targets:  # the longest known module
            rule, any_layer = rule.rpartition(".")[0], any_layer.rpartition(".")[0]
        if not rule:
            matched.unknown.append(theirs)
            continue
        layer = LAYER.search(rule)
        group, ours = table.targets[rule if rule in table.targets else any_layer]
        ours = (ours.replace("#", layer[0]) if layer else ours) + theirs[len(rule) :]
        if group.kind == "constant":
            matched.constants.append(Repeat(group, theirs, ours, tensor))
        elif group.kind != "name":
            matched.repeats.append(Repeat(group, theirs, ours, tensor))
        else:
            state = matched.training if ours.startswith(TRAINING) else matched.tensors
            if ours in state and not _same(state[ours], tensor):
                raise CheckpointError(f"{source}: {matched.origin[ours]} and {theirs} must be equal, but they differ")
            state[ours] = tensor
            matched.origin.setdefault(ours, theirs)
    return matched


def check(
    matched: MatchedCheckpoint, config: ModelConfig, shapes: Mapping[str, torch.Size], *, keeps_training: bool = False
) -> list[str]:
    """Check a checkpoint against the tensors of a model.

    Args:
        matched: The checkpoint.
        config: Configuration of the model.
        shapes: Shapes of the model's tensors.
        keeps_training: Whether the training state is kept, for the notes.

    Returns:
        Notes for the user: tensors that were checked and dropped, or derived.

    Raises:
        CheckpointError: If a tensor is missing, unknown or misshapen, an optional group is incomplete, or a repeated
            tensor differs. The message lists all names, and says which checkpoint the file is instead.
    """
    table, tensors = matched.table, matched.tensors
    absent = shapes.keys() - tensors.keys()
    missing = [matched.name(ours) for ours in shapes if ours in absent and _is_required(ours, table)]
    unknown = matched.unknown + [matched.origin[ours] for ours in tensors if ours not in shapes]
    misshapen = [
        f"{matched.origin[ours]}: stored {tuple(tensor.shape)}, needed {tuple(shapes[ours])}"
        for ours, tensor in tensors.items()
        if ours in shapes and tensor.shape != shapes[ours]
    ]
    incomplete: list[str] = []
    if matched.training or matched.repeats:
        unknown += [repeat.theirs for repeat in matched.repeats if repeat.target not in shapes]
        misshapen += _misshapen_state(matched, shapes)
        incomplete, superfluous = _check_optional_groups(matched, shapes)
        unknown += superfluous
    if missing or unknown or misshapen or incomplete:
        problems = [("missing", missing), ("unknown", unknown), ("of a wrong shape", misshapen)]
        raise matched.error([*(count_names(title, names) for title, names in problems), *incomplete])
    notes = _check_repeats(matched, config) if matched.repeats or matched.constants else []
    counts = Counter(table.theirs(ours)[0][0].title for ours in matched.training)
    result = "kept" if keeps_training else "dropped"
    notes += [f"training state, {result}: {title} ({count} tensors)" for title, count in counts.items()]
    stored = {repeat.group.title for repeat in (*matched.repeats, *matched.constants)}
    for group in table.groups:
        if group.title in stored:
            notes.append(f"checked and left out: {group.title}")
        elif group.kind in ("shared", "tied"):
            notes.append(f"not stored, derived: {group.title}")
        elif group.need == "optional" and absent.intersection(group.names.values()):
            notes.append(f"not stored, left at its default: {group.title}")
    return notes


def _is_required(ours: str, table: Table) -> bool:
    """Return whether a file must have a tensor.

    It need not if its group is optional, or if the family has no name for it: the temperature of the hub's matcher is
    in `config.json`.
    """
    targets = table.theirs(ours)
    return bool(targets) and all((group.need, group.kind) != ("optional", "name") for group, _ in targets)


def _check_optional_groups(matched: MatchedCheckpoint, shapes: Mapping[str, torch.Size]) -> tuple[list[str], list[str]]:
    """Return the optional groups that are incomplete, as problems, and names in them that the model does not have."""
    present: dict[str, set[str]] = {}
    for ours in matched.training:
        group, _ = matched.table.theirs(ours)[0]
        present.setdefault(group.title, set()).add(ours)
    for repeat in matched.repeats:
        if repeat.group.need == "optional":
            present.setdefault(repeat.group.title, set()).add(repeat.target)
    problems: list[str] = []
    superfluous: list[str] = []
    for group in matched.table.groups:
        names = present.get(group.title)
        if group.need != "optional" or not names:
            continue
        members = _members(matched.table, group, shapes)
        if group.training:
            superfluous += [matched.name(ours) for ours in sorted(names - members.keys())]
        if absent := [theirs for ours, theirs in members.items() if ours not in names]:
            count = count_names("missing", absent)
            problems.append(f"{count} from an optional group, {group.title}, which must be complete or absent")
    return problems, superfluous


def _members(table: Table, group: Group, shapes: Iterable[str]) -> dict[str, str]:
    """Return every tensor that a group has for a model with the tensors `shapes`: our name to theirs."""
    names = list(shapes)
    if group.training:
        names = [f"momentum.{ours}" for ours in names]
        names += [ours for ours in group.names.values() if ours.startswith("queue.")]
    members = {}
    for ours in names:
        for target_group, theirs in table.theirs(ours):
            if target_group.title == group.title:
                members[ours] = theirs
    return members


def _misshapen_state(matched: MatchedCheckpoint, shapes: Mapping[str, torch.Size]) -> list[str]:
    """Return the repeats, momentum twins and queues with a wrong shape.

    Queues may have any length, but all the same one, and their features are as wide as the embeddings.
    """
    expected = [(repeat.theirs, repeat.tensor.shape, shapes.get(repeat.target)) for repeat in matched.repeats]
    queues: dict[str, torch.Size] = {}
    if "queue.image" in matched.training and "vision_proj.bias" in shapes:
        width, length = shapes["vision_proj.bias"][0], matched.training["queue.image"].shape[-1]
        queues = {"queue.image": torch.Size((width, length)), "queue.text": torch.Size((width, length))}
        queues |= {"queue.ids": torch.Size((1, length)), "queue.pointer": torch.Size((1,))}
    for ours, tensor in matched.training.items():
        shape = queues.get(ours) or shapes.get(ours.removeprefix("momentum."))
        expected.append((matched.origin[ours], tensor.shape, shape))
    return [
        f"{name}: stored {tuple(stored)}, needed {tuple(needed)}"
        for name, stored, needed in expected
        if needed is not None and stored != needed
    ]


def _check_repeats(matched: MatchedCheckpoint, config: ModelConfig) -> list[str]:
    """Check that repeated and computed tensors have their values. A tied copy that differs is ignored, with a note."""
    for constant in matched.constants:
        if not _same(compute_constant(constant.target, config), constant.tensor):
            raise CheckpointError(
                f"{matched.source}: {constant.theirs} must be what a model for {matched.table.task!r} computes, but it "
                "differs, so the weights belong to another kind of model"
            )
    notes = []
    for repeat in matched.repeats:
        ours = repeat.target
        if ours not in matched.tensors or _same(matched.tensors[ours], repeat.tensor):
            continue
        original = matched.name(ours)
        if repeat.group.kind == "shared":
            raise CheckpointError(
                f"{matched.source}: {repeat.theirs} and {original} must be one tensor in a model for "
                f"{matched.table.task!r}, but they differ: encoder and decoder of this file were trained separately"
            )
        note = f"{repeat.theirs} differs from {original}, to which it is tied: {original} is used"
        warnings.warn(f"{matched.source}: {note}", stacklevel=4)
        notes.append(note)
    return notes


def compute_constant(rule: str, config: ModelConfig) -> Tensor:
    """Return a tensor that files store although the configuration determines it.

    Args:
        rule: Name of the tensor in a layout: `=positions`, `=box_start`, `=box_tokens` or `=box_mask`.
        config: Configuration of the model.

    Returns:
        The tensor.
    """
    if rule == "=positions":
        return torch.arange(config.text.max_positions)[None]
    if rule == "=box_start":
        return torch.tensor([config.box_start_id])
    boxes = torch.arange(config.box_start_id + 1, config.box_start_id + 2 + config.box_bins)
    if rule == "=box_tokens":
        return boxes
    mask = torch.zeros(config.text.vocab_size)  # "=box_mask" is added to logits, so that only bins remain
    mask[boxes] = 1.0
    return (1.0 - mask) * -10000.0


def count_names(title: str, names: Sequence[str]) -> str:
    """Return `"2 missing (a, b)"`, or an empty text for no names."""
    return f"{len(names)} {title} ({join_names(list(names))})" if names else ""


def describe_names(names: Collection[str], task: str | None = None) -> str:
    """Return a sentence that says which checkpoint has these tensor names, and how to use it.

    Args:
        names: The names of tensors.
        task: Kind of the model that was expected. The sentence is empty if the checkpoint is of this kind.

    Returns:
        The sentence.
    """
    best, distance = nearest(names, served=False)
    if distance * 2 > len(names):
        return "It is no BLIP checkpoint that this version knows."
    if best.task == task:
        return ""
    kind = f"{best.task!r} ({best.family})"
    sentence = f"It is a checkpoint for {kind}" if distance == 0 else f"It is closest to a checkpoint for {kind}"
    if best.family == "lavis" and best.task == "classification":
        return f"{sentence}, which OpenBLIP does not support."
    if best.family in ("timm", "bert") or (task, best.task) in starts.RULES:
        return f"{sentence}: to start a model from it, use openblip.checkpoints.initialize."
    return f"{sentence}: load it with task={best.task!r}."


def _same(tensor: Tensor, reference: Tensor) -> bool:
    return tensor.shape == reference.shape and bool((tensor == reference).all())
