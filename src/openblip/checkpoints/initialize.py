"""Initialize a model from the checkpoint of another task: by declared rules, with a report.

Loading never does this. The rules follow the published training code: a captioner takes the pretrained decoder, the two
image attentions of NLVR2 are copies of one, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from openblip.checkpoints.containers import read_checkpoint
from openblip.checkpoints.folder import RawCheckpoint, join_names
from openblip.checkpoints.layouts import Table, nearest
from openblip.checkpoints.layouts.starts import RULES, Rules
from openblip.checkpoints.match import check, match
from openblip.checkpoints.read import LoadedModel, find_model, interpret
from openblip.checkpoints.write import config_of
from openblip.errors import CheckpointError
from openblip.model.build import build_model
from openblip.model.config import ModelKind
from openblip.model.vision import resize_positions

_STACKS = ("text", "encoder", "decoder", "fusion")
_ANY_HEADS = {"vision": {"heads": 1}, "text": {"heads": 1}}  # the number of heads leaves no trace in the weights


@dataclass
class InitReport:
    """The result of initializing a model from a checkpoint.

    Attributes:
        derived: Tensors of the model (our names) that were filled, with the source's names of their origin.
        fresh: Tensors of the model that were not changed.
        dropped: Tensors of the source that were not used.
        notes: Tensors that were resized or extended.
    """

    derived: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [] if self.fresh else ["all weights"]
        for title, names in (("new", self.fresh), ("unused", self.dropped)):
            if names:
                noun = "weight" if len(names) == 1 else "weights"
                lines.append(f"{len(names)} {title} {noun}: {join_names(names, 4)}")
        return "; ".join(lines + self.notes)


def initialize(model: nn.Module, source: LoadedModel | nn.Module | str | Path) -> InitReport:
    """Fill a model, in place, from a checkpoint or model of another task, from a DeiT, or from bert-base-uncased.

    A checkpoint of the same task fills everything. Position embeddings are resized to the model's image size. A
    cross-attention that reads states of another width than the source's (the answer decoder, from a ViT-L) keeps its
    fresh keys and values. A vocabulary without [DEC] and [ENC] is extended by two rows.

    Args:
        model: The model to fill.
        source: The path of a checkpoint of any family, a loaded checkpoint, or a model.

    Returns:
        A report: which tensors were filled, from which tensors of the source, and which were not.

    Raises:
        CheckpointError: If no rule leads from the source's task to the model's, or if sizes do not fit. The model is
            unchanged then.
    """
    target = config_of(model).task
    state = model.state_dict()
    report = InitReport()
    tensors, task, names = _read_source(source, report)
    rules = _rules(target, task, state, str(names.get("", "the source")))
    filled: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        targets = [name for name in _targets(ours, rules) if name in state]
        for name in targets:
            fitted = _fit_shape(name, tensor, state[name], task, report)
            if fitted is not None:
                filled[name] = fitted
                report.derived[name] = names.get(ours, ours)
        if not any(name in filled for name in targets):
            report.dropped.append(names.get(ours, ours))
    report.fresh = [name for name in state if name not in filled]
    if missing := [name for name in report.fresh if _is_required(name, task)]:
        raise CheckpointError(f"{names['']} is not complete: nothing in it fills {join_names(missing)}")
    with torch.no_grad():
        for name, tensor in filled.items():
            state[name].copy_(tensor)
    return report


def _read_source(
    source: LoadedModel | nn.Module | str | Path, report: InitReport
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Return the tensors of a source under our names, its task, and the source's names by ours ("": the source)."""
    if isinstance(source, LoadedModel):
        source = source.model
    if isinstance(source, nn.Module):
        return dict(source.state_dict()), config_of(source).task, {"": type(source).__name__}
    raw = read_checkpoint(find_model(Path(source).expanduser().absolute()))
    layout, distance = nearest(raw.tensors, served=False)
    if layout.family in ("timm", "bert") and distance * 2 < len(raw.tensors):
        return _read_start(raw, layout, report)
    matched, parsed = interpret(raw, config=None if raw.settings else _ANY_HEADS)
    model = build_model(parsed.config, device="meta")  # a source must be as complete as a checkpoint that is loaded
    check(matched, parsed.config, {name: tensor.shape for name, tensor in model.state_dict().items()})
    report.dropped += [matched.origin[ours] for ours in matched.training]
    return matched.tensors, matched.table.task, {"": str(raw.path), **matched.origin}


def _read_start(
    raw: RawCheckpoint[Tensor], layout: Table, report: InitReport
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Return the same for a DeiT or a BERT. BERT's files call the parameters of norms gamma and beta."""
    origin = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): name for name in raw.tensors}
    matched = match({name: raw.tensors[old] for name, old in origin.items()}, layout, str(raw.path))
    if matched.unknown:
        raise CheckpointError(
            f"{raw.path} must be a plain {layout.task}, got {len(matched.unknown)} unknown tensors "
            f"({join_names(matched.unknown)})"
        )
    report.dropped += [origin[constant.theirs] for constant in matched.constants]
    names = {ours: origin[theirs] for ours, theirs in matched.origin.items()}
    return matched.tensors, layout.family, {"": str(raw.path), **names}


def _rules(target: ModelKind, task: str, state: Mapping[str, Tensor], source: str) -> Rules:
    if task == "timm":
        return {"": ["vision."] if any(name.startswith("vision.") for name in state) else [""]}
    if task == "bert":
        stacks = [name for name in _STACKS if any(key.startswith(f"{name}.") for key in state)] or [""]
        return _from_bert(stacks, shared=any(".decoder_attn." in name for name in state))
    if target == task:
        return {"": [""]}
    if (rules := RULES.get((target, cast(ModelKind, task)))) is None:
        sources = ", ".join([target, *(start for goal, start in RULES if goal == target)])
        raise CheckpointError(
            f"a model for {target!r} must start from a checkpoint for {sources}, a DeiT or bert-base-uncased; {source} "
            f"is for {task!r}, from which no rule leads to {target!r}"
        )
    return rules


def _from_bert(stacks: Sequence[str], shared: bool) -> Rules:
    """Return the rules from BERT, which fills every text stack, and both self-attentions of a shared stack."""
    prefixes = [f"{name}." if name else "" for name in stacks]
    rules: dict[str, list[str]] = {"lm_head": ["lm_head"]}
    if shared:
        for kind in ("attn", "norm"):
            rules[f"layers.#.self_{kind}"] = [
                f"{prefix}layers.#.{stack}_{kind}" for prefix in prefixes for stack in ("self", "decoder")
            ]
    return rules | {"": prefixes}


def _is_required(name: str, task: str) -> bool:
    """Return whether a complete DeiT or BERT fills a tensor: the ViT, or a text stack except its cross-attention."""
    if task == "timm":
        return name.startswith("vision.")
    modules = name.split(".")
    in_stack = modules[0] in _STACKS and modules[1] in ("embeddings", "layers")
    return task == "bert" and in_stack and not any(module.startswith("cross_") for module in modules)


def _targets(ours: str, rules: Rules) -> list[str]:
    """Return the tensors of the model that a tensor of the source fills, by the first rule whose module it is in."""
    for module, targets in rules.items():
        pattern = re.escape(module).replace(re.escape("#"), "([0-9]+)") + (r"(?=\.|$)" if module else "")
        match = re.match(pattern, ours)
        if match:
            layer = match.group(1) if match.groups() else ""
            return [target.replace("#", layer) + ours[match.end() :] for target in targets]
    return []


def _fit_shape(name: str, tensor: Tensor, fresh: Tensor, task: str, report: InitReport) -> Tensor | None:
    """Return `tensor` in the shape of the model's `fresh` one; `None` if the fresh one is kept by rule."""
    if tensor.shape == fresh.shape:
        return tensor
    if name.endswith("pos_embed") and tensor.ndim == 3 and tensor.shape[-1] == fresh.shape[-1]:
        side = round((fresh.shape[1] - 1) ** 0.5)
        report.notes.append(f"{name} resized from {tensor.shape[1]} to {fresh.shape[1]} positions")
        return resize_positions(tensor, side, side)
    reads_memory = re.search(r"\.cross_attn\.(key|value)\.weight$", name)
    if reads_memory and name.startswith("decoder.") and tensor.shape[0] == fresh.shape[0]:
        return None
    vocabulary = name.endswith("embeddings.word.weight") or name == "lm_head.bias"
    if task == "bert" and vocabulary and fresh.shape[0] == tensor.shape[0] + 2 and tensor.shape[1:] == fresh.shape[1:]:
        report.notes.append(f"{name}: the last 2 rows, [DEC] and [ENC], are fresh")
        return torch.cat([tensor.to(fresh), fresh[-2:]])
    raise CheckpointError(
        f"{name} must have the shape {tuple(fresh.shape)} of the model, got {tuple(tensor.shape)} in the source"
    )
