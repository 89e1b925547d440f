"""Checks that predictions and references are about the same ids."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Sized
from typing import TypeAlias, TypeVar

from openblip.errors import EvaluationError

Id = TypeVar("Id", bound=Hashable)  # the id of an image, a question, a query or an expression
ItemId: TypeAlias = int | str  # the ids that files have


def check_ids(predictions: Mapping[Id, object], references: Mapping[Id, object]) -> None:
    """Check that predictions and references have the same ids.

    Args:
        predictions: Any values by id.
        references: Any values by id. A list must not be empty.

    Raises:
        EvaluationError: If an id is in one of the two only, if a reference is an empty list, or if there are no
            references at all.
    """
    if not references:
        raise EvaluationError("there are no references, so there is nothing to score")
    missing = [key for key in references if key not in predictions]
    if missing:
        by_text = {str(key): key for key in predictions}
        hints = [describe_types(by_text[str(key)], key) for key in missing if str(key) in by_text]
        hint = f"; {hints[0]}" if hints else ""
        raise EvaluationError(f"no prediction for {_list_ids(missing)}: every reference needs a prediction{hint}")
    unknown = [key for key in predictions if key not in references]
    if unknown:
        raise EvaluationError(f"no reference for {_list_ids(unknown)}: every prediction needs a reference")
    for key, value in references.items():
        if isinstance(value, Sized) and not isinstance(value, str) and not len(value):
            raise EvaluationError(f"id {key!r} has no references")


def describe_types(prediction_id: object, reference_id: object) -> str:
    """Return the remedy for two ids that differ in type only, such as "1" and 1.

    Args:
        prediction_id: The id of the predictions.
        reference_id: The id of the references.

    Returns:
        The end of an error message.
    """
    return (
        f"predictions have ids such as {prediction_id!r} ({type(prediction_id).__name__}), references "
        f"{reference_id!r} ({type(reference_id).__name__}): write both the same way"
    )


def _list_ids(keys: Sequence[object]) -> str:
    names = ", ".join(f"id {key!r}" for key in keys[:3])
    return names if len(keys) <= 3 else f"{names} and {len(keys) - 3} more"
