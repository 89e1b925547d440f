"""The four checkpoint families, each a table of renames per model. Free of torch.

Reading and writing use the same tables. They say what each group of names needs (complete, complete or absent,
derivable); nothing else in the package knows the tensor names of another library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
    """Return the table of a model.

    Args:
        family: Family of the checkpoint.
        task: Kind of the model.

    Returns:
        The table.

    Raises:
        CheckpointError: If the family does not exist, or has no such model.
    """
    if family not in TABLES:
        raise CheckpointError(f"checkpoint family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if task not in TABLES[family]:
        families = " and ".join(name for name in FAMILIES if task in TABLES[name])
        raise CheckpointError(f"the {family} family has no model for {task!r}; use {families or 'another task'}")
    return TABLES[family][task]


def nearest(
    names: Collection[str], family: Family | None = None, task: ModelKind | None = None, *, served: bool = True
) -> tuple[Table, int]:
    """Return the table that a set of tensor names fits best, and its distance (0: every name is known).

    Args:
        names: Names of tensors.
        family: Consider only this family.
        task: Consider only this kind of model.
        served: Consider only models that OpenBLIP has. Others can only be named in messages.

    Returns:
        The table, and the number of names that are unknown or missing.

    Raises:
        CheckpointError: If the family has no such model.
    """
    candidates = [
        candidate
        for candidate in (candidate for tables in TABLES.values() for candidate in tables.values())
        if family in (None, candidate.family) and task in (None, candidate.task)
    ]
    if not candidates and family is not None and task is not None:
        table(family, task)  # raises the error
    ranked = [(candidate.distance(names), candidate) for candidate in (*candidates, *(() if served else _ONLY_NAMED))]
    distance, best = min(ranked, key=lambda pair: pair[0])
    return best, distance
