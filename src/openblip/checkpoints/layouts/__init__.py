"""The four checkpoint families, each a table of renames per model. Free of torch.

A table is read and written. What each group of names needs to be (complete, whole or absent, derivable) stands beside
it; nothing else in the package knows another library's name for a tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from openblip.checkpoints.layouts import hub, lavis, mmpretrain, salesforce, starts
from openblip.checkpoints.layouts.table import Group, Table
from openblip.checkpoints.published import FAMILIES, Family
from openblip.errors import CheckpointError
from openblip.model.config import ModelKind

__all__ = ["FAMILIES", "TABLES", "Family", "Group", "Table", "nearest", "table"]

TABLES: Mapping[Family, Mapping[ModelKind, Table]] = {
    "hub": hub.TABLES,
    "salesforce": salesforce.TABLES,
    "lavis": lavis.TABLES,
    "mmpretrain": mmpretrain.TABLES,
}

_ONLY_NAMED = (lavis.CLASSIFICATION, starts.DEIT, *starts.BERT)


def table(family: Family, task: ModelKind) -> Table:
    """The table of one model; :class:`CheckpointError` if the family has no such model."""
    if family not in TABLES:
        raise CheckpointError(f"unknown checkpoint family {family!r}; one of {', '.join(FAMILIES)}")
    if task not in TABLES[family]:
        having = " and ".join(other for other in FAMILIES if task in TABLES[other])
        raise CheckpointError(f"the {family} family has no model for {task!r}; for that, there is {having}")
    return TABLES[family][task]


def nearest(
    names: Collection[str], family: Family | None = None, task: ModelKind | None = None, *, served: bool = True
) -> tuple[Table, int]:
    """The table that a set of tensor names fits best, and how far it is from fitting (0: every name is known).

    ``family`` and ``task`` narrow the choice; ``served=False`` widens it to models that can only be named in messages.
    """
    ranked = [(candidate.distance(names), candidate) for candidate in _candidates(family, task, served)]
    if not ranked:
        assert family is not None
        assert task is not None
        table(family, task)  # says that the family lacks the task
    distance, best = min(ranked, key=lambda pair: pair[0])
    return best, distance


def _candidates(family: Family | None, task: ModelKind | None, served: bool) -> Iterator[Table]:
    for one, tables in TABLES.items():
        for other, candidate in tables.items():
            if family in (None, one) and task in (None, other):
                yield candidate
    if not served:
        yield from _ONLY_NAMED
