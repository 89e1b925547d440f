"""Visual dialog metrics: the rank of the right answer among all candidates, and NDCG over the relevant ones.

Source: the starter code of the VisDial challenge (batra-mlp-lab/visdial-challenge-starter-pytorch, `metrics.py`).
Reciprocal rank, recall and mean rank are about the one right answer. NDCG needs the relevance of every candidate and
looks at as many ranks as there are relevant candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, log2
from typing import Generic

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.ids import Id, check_ids

KS = (1, 5, 10)


@dataclass(frozen=True)
class DialogReference:
    """The reference of a dialog round.

    Attributes:
        answer_index: The index of the right answer among the candidates.
        relevance: How relevant annotators found each candidate, from 0 to 1; empty if the round was not annotated.
    """

    answer_index: int
    relevance: Sequence[float] = ()


@dataclass(frozen=True)
class DialogScores(Generic[Id]):
    """Scores of dialog rounds.

    Attributes:
        mrr: The mean reciprocal rank of the right answer.
        recall: The share of rounds whose right answer is among the first k, by k (1, 5 and 10).
        mean_rank: The mean rank of the right answer.
        ndcg: The mean NDCG of the rounds with relevance; `None` if no round has it.
        items: The rank of the right answer, from 1, by round.
    """

    mrr: float
    recall: dict[int, float]
    mean_rank: float
    ndcg: float | None
    items: dict[Id, int] = field(repr=False)


def score(ranks: Mapping[Id, Sequence[int]], references: Mapping[Id, DialogReference]) -> DialogScores[Id]:
    """Score the ranks of the candidates of each round.

    Args:
        ranks: The rank, from 1, of every candidate of a round, in the order in which the candidates are given.
        references: The right answer of each round, and the relevance of its candidates.

    Returns:
        Mean reciprocal rank, recall at 1, 5 and 10, mean rank, NDCG, and the rank of each round.

    Raises:
        EvaluationError: If rounds differ, or if the ranks of a round are not the numbers 1 to the number of candidates.
    """
    check_ids(ranks, references)
    for key, round_ranks in ranks.items():
        if sorted(round_ranks) != list(range(1, len(round_ranks) + 1)):
            raise EvaluationError(
                f"the ranks of id {key!r} must be the numbers from 1 to {len(round_ranks)}, each exactly once"
            )
    items: dict[Id, int] = {}
    gains: list[float] = []
    for key, reference in references.items():
        if not 0 <= reference.answer_index < len(ranks[key]):
            raise EvaluationError(
                f"the right answer of id {key!r} must be below {len(ranks[key])}, got {reference.answer_index}"
            )
        items[key] = ranks[key][reference.answer_index]
        if reference.relevance:
            try:
                gains.append(ndcg(ranks[key], reference.relevance))
            except EvaluationError as error:
                raise EvaluationError(f"id {key!r}: {error}") from error
    return DialogScores(
        mrr=fsum(1 / rank for rank in items.values()) / len(items),
        recall={k: sum(rank <= k for rank in items.values()) / len(items) for k in KS},
        mean_rank=fsum(items.values()) / len(items),
        ndcg=fsum(gains) / len(gains) if gains else None,
        items=items,
    )


def ndcg(ranks: Sequence[int], relevance: Sequence[float]) -> float:
    """Return the normalized discounted cumulative gain at K, the number of candidates with any relevance.

    Args:
        ranks: The rank of each candidate, from 1.
        relevance: The relevance of each candidate, from 0 to 1.

    Returns:
        The gain of the first K candidates, divided by the best possible gain.

    Raises:
        EvaluationError: If the lengths differ, or if no candidate is relevant.
    """
    if len(ranks) != len(relevance):
        raise EvaluationError(f"ranks and relevance must have the same length, got {len(ranks)} and {len(relevance)}")
    k = sum(value != 0 for value in relevance)
    if not k:
        raise EvaluationError("at least one candidate must be relevant, got none")
    ranked = [value for _, value in sorted(zip(ranks, relevance, strict=True))]
    return _discounted_gain(ranked[:k]) / _discounted_gain(sorted(relevance, reverse=True)[:k])


def _discounted_gain(values: Sequence[float]) -> float:
    return fsum(value / log2(index + 2) for index, value in enumerate(values))
