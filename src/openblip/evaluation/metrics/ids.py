"""Predictions and references belong together, id by id."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from openblip.errors import EvaluationError


def check_ids(predictions: Mapping[Any, object], references: Mapping[Any, object]) -> None:
    """Raise :class:`EvaluationError` unless every reference has a prediction, and every prediction a reference."""
    if not references:
        raise EvaluationError("there are no references, so there is nothing to score")
    if lacking := [key for key in references if key not in predictions]:
        twins = {str(key): key for key in predictions}
        hint = next((f"; {other_kind(twins[str(key)], key)}" for key in lacking if str(key) in twins), "")
        raise EvaluationError(f"no prediction for {_listed(lacking)}: every one of the references needs one{hint}")
    if unknown := [key for key in predictions if key not in references]:
        raise EvaluationError(f"a prediction for {_listed(unknown)}, which the references do not have")
    for key, value in references.items():
        if isinstance(value, Sized) and not isinstance(value, str) and not len(value):
            raise EvaluationError(f"{_shown(key)} has no references")


def other_kind(predicted: Any, wanted: Any) -> str:
    """What to do where ids differ in kind alone, as "1" and 1."""
    ours, theirs = type(predicted).__name__, type(wanted).__name__
    return f"predictions have ids such as {predicted!r} ({ours}), references {wanted!r} ({theirs}): write both alike"


def _listed(keys: list[Any]) -> str:
    shown = ", ".join(map(_shown, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"


def _shown(key: Any) -> str:
    return f"id {key!r}"
