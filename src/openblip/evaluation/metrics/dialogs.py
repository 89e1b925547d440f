"""Visual dialog: where the right answer stands among all that were offered, and how well the relevant ones come first.

As the code of the VisDial challenge computes them (batra-mlp-lab/visdial-challenge-starter-pytorch, ``metrics.py``):
reciprocal and mean rank and recall of the one right answer, and, where people judged all answers, the NDCG at as many
places as there are relevant ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, log2
from typing import Any

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.ids import check_ids

KS = (1, 5, 10)


@dataclass(frozen=True)
class Reference:
    """The number of the right answer, from 0, and how ``relevant`` (0 to 1) people found each, if they were asked."""

    right: int
    relevant: Sequence[float] = ()


@dataclass(frozen=True)
class DialogScores:
    """Mean reciprocal rank, recall at 1, 5 and 10 (0 to 1), mean rank, NDCG, and the rank of each right answer.

    ``ndcg`` is ``None`` where nobody judged relevance.
    """

    mrr: float
    recall: dict[int, float]
    mean_rank: float
    ndcg: float | None
    items: dict[Any, int] = field(repr=False)


def score(ranks: Mapping[Any, Sequence[int]], references: Mapping[Any, Reference]) -> DialogScores:
    """Scores from the rank, from 1, of every answer offered in a round.

    Raises :class:`EvaluationError` for a missing or unknown round, or ranks that are not each number once.
    """
    check_ids(ranks, references)
    for key, given in ranks.items():
        if sorted(given) != list(range(1, len(given) + 1)):
            raise EvaluationError(f"the ranks of id {key!r} are not the numbers from 1 to {len(given)}, each once")
    items = {key: _rank(key, ranks[key], reference.right) for key, reference in references.items()}
    gains = [ndcg(key, ranks[key], one.relevant) for key, one in references.items() if one.relevant]
    return DialogScores(
        fsum(1 / rank for rank in items.values()) / len(items),
        {k: sum(rank <= k for rank in items.values()) / len(items) for k in KS},
        fsum(items.values()) / len(items),
        fsum(gains) / len(gains) if gains else None,
        items,
    )


def _rank(key: Any, ranks: Sequence[int], right: int) -> int:
    if not 0 <= right < len(ranks):
        raise EvaluationError(f"id {key!r} ranks {len(ranks)} answers, and the right one is number {right}")
    return ranks[right]


def ndcg(key: Any, ranks: Sequence[int], relevant: Sequence[float]) -> float:
    """Normalised discounted cumulative gain at K, the number of answers of any relevance."""
    if len(ranks) != len(relevant):
        raise EvaluationError(f"id {key!r} ranks {len(ranks)} answers, of which {len(relevant)} were judged")
    k = sum(value != 0 for value in relevant)
    if not k:
        raise EvaluationError(f"no answer of id {key!r} is relevant, so nothing can be gained")
    found = [value for _, value in sorted(zip(ranks, relevant, strict=True))]
    return _gain(found[:k]) / _gain(sorted(relevant, reverse=True)[:k])


def _gain(values: Sequence[float]) -> float:
    return fsum(value / log2(place + 2) for place, value in enumerate(values))
