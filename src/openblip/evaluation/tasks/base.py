"""What an evaluation comes to, and what it is told on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import EvaluationError
from openblip.evaluation.protocols.base import Items
from openblip.evaluation.report import Shown

Predict: TypeAlias = Callable[[Items], Iterable[Any]]  # a text or an error for each item, in order
Notify: TypeAlias = Callable[[int, int], None]  # how many items are done, of how many


@dataclass(frozen=True)
class Evaluated:
    """``metrics`` from 0 to 1 (captions' CIDEr may exceed 1); ``notes`` say what they can be compared with."""

    metrics: dict[str, float | None]
    notes: list[str]
    shown: list[Shown]
    failed: dict[Any, str]
    predictions: dict[Any, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Predicted:
    """A text for each item that has one, by id, and why the others have none."""

    texts: Mapping[Any, str]
    failed: Mapping[Any, str]

    def text(self, key: Any) -> str:
        """What the report shows: the prediction, or the error."""
        return self.texts.get(key, self.failed.get(key, ""))

    def of(self, items: Items, verb: str) -> Items:
        """The items that have one. Raises :class:`EvaluationError` if none has: nothing could be ``verb``."""
        done = [item for item in items if item.id in self.texts]
        if not done:
            raise EvaluationError(
                f"nothing could be {verb}; the first error: {next(iter(self.failed.values()), 'there are no items')}"
            )
        return done

    def evaluated(
        self, metrics: Mapping[str, float | None], shown: list[Shown], notes: Iterable[str] = ()
    ) -> Evaluated:
        """What it comes to."""
        return Evaluated(dict(metrics), list(notes), shown, dict(self.failed), dict(self.texts))
