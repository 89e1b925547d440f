"""Starting one task from another's checkpoint: explicit, by declared rules, with a report of what became of what.

Loading never does this. The rules follow the published training code: a captioner takes the pretrained decoder, NLVR2's
two attentions are copies of one, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from openblip.checkpoints.containers import join_names
from openblip.checkpoints.layouts import Table, nearest
from openblip.checkpoints.layouts.starts import RULES, Rules
from openblip.checkpoints.match import check, match
from openblip.checkpoints.read import LoadedModel, RawCheckpoint, interpret, read_raw
from openblip.checkpoints.write import config_of
from openblip.errors import CheckpointError
from openblip.model.build import build_model
from openblip.model.config import ModelKind
from openblip.model.vision import resize_positions


@dataclass
class InitReport:
    """What starting a model from a checkpoint came to.

    ``derived``: tensors of the model (our names) that were filled, with the name of what they were filled from;
    ``fresh``: those left as they were; ``dropped``: tensors of the source that nothing was made of; ``notes``: what was
    resized or extended on the way.
    """

    derived: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.derived)} tensors derived"]
        lines += [f"{len(names)} {what}: {join_names(names, 4)}" for what, names in self._rest() if names]
        return "; ".join(lines + self.notes)

    def _rest(self) -> tuple[tuple[str, list[str]], ...]:
        return ("fresh", self.fresh), ("dropped", self.dropped)


_STACKS = ("text", "encoder", "decoder", "fusion")


def initialize(model: nn.Module, source: LoadedModel | nn.Module | str | Path) -> InitReport:
    """Fill a model, in place, from the checkpoint (or model) of another task, a DeiT, or bert-base-uncased.

    ``source`` is a path of any family, what :func:`load` returned, or a model. A checkpoint of the same task fills
    everything. Position embeddings are resized to the model's image size; a cross-attention that reads states of
    another width than the source's (VQA's decoder, from a ViT-L) keeps its fresh keys and values; two rows are added to
    a vocabulary without [DEC] and [ENC].

    Raises :class:`CheckpointError` if no rule leads from the one to the other, or if sizes do not fit otherwise. The
    model is unchanged then.
    """
    target = config_of(model).task
    state = model.state_dict()
    report = InitReport()
    tensors, task, names = _source(source, report)
    rules = _rules(target, task, state, str(names.get("", "the source")))
    filled: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        places = [place for place in _places(ours, rules) if place in state]
        for place in places:
            fitted = _fitted(place, tensor, state[place], task, report)
            if fitted is not None:
                filled[place] = fitted
                report.derived[place] = names.get(ours, ours)
        if not any(place in filled for place in places):
            report.dropped.append(names.get(ours, ours))
    report.fresh = [name for name in state if name not in filled]
    if torn := [name for name in report.fresh if _must_come(name, task)]:
        raise CheckpointError(f"{names['']} is not complete: nothing in it fills {join_names(torn)}")
    _fill(state, filled)
    return report


def _source(
    source: LoadedModel | nn.Module | str | Path, report: InitReport
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """The tensors of a source in our names, its task, and what each was called there ("" names the source itself)."""
    if isinstance(source, LoadedModel):
        source = source.model
    if isinstance(source, nn.Module):
        return dict(source.state_dict()), config_of(source).task, {"": type(source).__name__}
    raw = read_raw(Path(source))
    layout, distance = nearest(raw.tensors, served=False)
    if layout.family in ("timm", "bert") and distance * 2 < len(raw.tensors):
        return _start(raw, layout, report)
    matched, parsed = interpret(raw, config=None if raw.settings else _ANY_HEADS)
    model = build_model(parsed.config, device="meta")  # a source must be as complete as a checkpoint that is loaded
    check(matched, parsed.config, {name: tensor.shape for name, tensor in model.state_dict().items()})
    report.dropped += [matched.origin[ours] for ours in matched.training]
    return matched.tensors, matched.table.task, {"": str(raw.path), **matched.origin}


_ANY_HEADS = {"vision": {"heads": 1}, "text": {"heads": 1}}  # the number of heads leaves no trace in the weights


def _start(raw: RawCheckpoint, layout: Table, report: InitReport) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Return the same for a checkpoint that BLIP's pretraining started from. BERT's files call norms gamma and beta."""
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
        possible = [other for goal, other in RULES if goal == target]
        raise CheckpointError(
            f"{source} is for {task!r}, from which no rule leads to {target!r}; a model for {target!r} starts from "
            f"{', '.join([target, *possible])}, a DeiT or bert-base-uncased"
        )
    return rules


def _from_bert(stacks: Sequence[str], shared: bool) -> Rules:
    """BERT fills every text stack; where one stack is encoder and decoder, both its self-attentions."""
    dotted = [f"{name}." if name else "" for name in stacks]
    rules: dict[str, list[str]] = {"lm_head": ["lm_head"]}
    if shared:
        for part in ("attn", "norm"):
            rules[f"layers.#.self_{part}"] = [
                f"{dot}layers.#.{which}_{part}" for dot in dotted for which in ("self", "decoder")
            ]
    return rules | {"": dotted}


def _must_come(name: str, task: str) -> bool:
    """Whether a start that is whole fills this tensor: all of a ViT; of a text stack all but cross-attention."""
    if task == "timm":
        return name.startswith("vision.")
    parts = name.split(".")
    in_stack = parts[0] in _STACKS and parts[1] in ("embeddings", "layers")
    return task == "bert" and in_stack and not any(part.startswith("cross_") for part in parts)


def _places(ours: str, rules: Rules) -> list[str]:
    """The tensors of the model that one of the source fills: by the first rule whose part it lies in."""
    for part, targets in rules.items():
        pattern = re.escape(part).replace(re.escape("#"), "([0-9]+)") + (r"(?=\.|$)" if part else "")
        match = re.match(pattern, ours)
        if match:
            number = match.group(1) if match.groups() else ""
            return [target.replace("#", number) + ours[match.end() :] for target in targets]
    return []


def _fitted(name: str, tensor: Tensor, there: Tensor, task: str, report: InitReport) -> Tensor | None:
    """``tensor`` in the shape of the model's; ``None`` where a rule says to leave the fresh one."""
    if tensor.shape == there.shape:
        return tensor
    if name.endswith("pos_embed") and tensor.ndim == 3 and tensor.shape[-1] == there.shape[-1]:
        side = round((there.shape[1] - 1) ** 0.5)
        report.notes.append(f"{name} resized from {tensor.shape[1]} to {there.shape[1]} positions")
        return resize_positions(tensor, side, side)
    reads_memory = re.search(r"\.cross_attn\.(key|value)\.weight$", name)
    if reads_memory and name.startswith("decoder.") and tensor.shape[0] == there.shape[0]:
        return None
    vocabulary = name.endswith("embeddings.word.weight") or name == "lm_head.bias"
    if task == "bert" and vocabulary and there.shape[0] == tensor.shape[0] + 2 and tensor.shape[1:] == there.shape[1:]:
        report.notes.append(f"{name}: the last 2 rows, [DEC] and [ENC], are fresh")
        return torch.cat([tensor.to(there), there[-2:]])
    raise CheckpointError(
        f"{name} has the shape {tuple(tensor.shape)} in the source, but {tuple(there.shape)} in the model: their sizes "
        "do not fit"
    )


@torch.no_grad()
def _fill(state: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> None:
    for name, tensor in filled.items():
        state[name].copy_(tensor)
