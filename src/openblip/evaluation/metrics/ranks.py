"""Retrieval metrics: how often a relevant result is among the first k, and the median rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.ids import Id, check_ids, describe_types

KS = (1, 5, 10)
NOT_RANKED = 1_000_000_000  # the rank of a query without any relevant result in its list


@dataclass(frozen=True)
class RecallScores(Generic[Id]):
    """Scores of rankings.

    Attributes:
        recall: The share of queries with a relevant result among the first k, by k (1, 5 and 10).
        median_rank: The median of `items`.
        items: The rank, from 1, of each query's best relevant result, by query.
    """

    recall: dict[int, float]
    median_rank: float
    items: dict[Id, int]

    @property
    def mean_recall(self) -> float:
        """The mean of the recalls at 1, 5 and 10."""
        return mean(self.recall.values())


def score(rankings: Mapping[Id, Sequence[Any]], relevant: Mapping[Id, Sequence[Any]]) -> RecallScores[Id]:
    """Score the ranking of each query.

    Args:
        rankings: The ids of each query's results, best first. A result that is not listed counts as not found.
        relevant: The ids of each query's relevant results, at least one.

    Returns:
        Recall at 1, 5 and 10, the median rank, and the rank of each query.

    Raises:
        EvaluationError: If queries differ, if a ranking lists an id twice, or if both sides write ids with different
            types, such as "1" and 1.
    """
    check_ids(rankings, relevant)
    _check_types(rankings, relevant)
    ranks = {}
    for query, relevant_ids in relevant.items():
        ranking = rankings[query]
        if len(set(ranking)) < len(ranking):
            raise EvaluationError(f"id {query!r} lists a result twice")
        hits = set(relevant_ids)
        ranks[query] = next((rank for rank, result in enumerate(ranking, 1) if result in hits), NOT_RANKED)
    return score_ranks(ranks)


def score_matrix(scores: NDArray[np.floating[Any]], relevant: Sequence[Sequence[int]]) -> RecallScores[int]:
    """Score a matrix of similarities.

    Args:
        scores: Similarities, (Q, C): Q queries, C candidates. Of equal values, the candidate with the lower number is
            ranked first.
        relevant: The numbers of each query's relevant candidates, at least one; Q entries.

    Returns:
        Recall at 1, 5 and 10, the median rank, and the rank of each query by its number.

    Raises:
        EvaluationError: If there are no queries, if a query has no relevant candidate, or if the lengths differ.
    """
    if len(scores) != len(relevant):
        raise EvaluationError(
            f"scores and relevant must have one entry per query, got {len(scores)} and {len(relevant)}"
        )
    ranks = {}
    for query, row in enumerate(scores):
        if not len(relevant[query]):
            raise EvaluationError(f"query {query} has no relevant candidate")
        order = np.argsort(-row, kind="stable")
        positions = np.empty(len(order), dtype=np.int64)
        positions[order] = np.arange(len(order))
        ranks[query] = 1 + int(positions[list(relevant[query])].min())
    return score_ranks(ranks)


def score_ranks(ranks: Mapping[Id, int]) -> RecallScores[Id]:
    """Score the ranks of the best relevant results.

    Args:
        ranks: The rank, from 1, of each query's best relevant result.

    Returns:
        Recall at 1, 5 and 10, and the median rank.

    Raises:
        EvaluationError: If there are no queries.
    """
    if not ranks:
        raise EvaluationError("there are no queries, so there is nothing to score")
    recall = {k: sum(rank <= k for rank in ranks.values()) / len(ranks) for k in KS}
    return RecallScores(recall, float(median(ranks.values())), dict(ranks))


def _check_types(rankings: Mapping[Id, Sequence[Any]], relevant: Mapping[Id, Sequence[Any]]) -> None:
    """Raise an error if a result equals a relevant one in its text but not in its type."""
    relevant_ids = {result for results in relevant.values() for result in results}
    by_text = {str(result): result for result in relevant_ids}
    for query, ranking in rankings.items():
        for result in ranking:
            if result not in relevant_ids and str(result) in by_text:
                raise EvaluationError(f"id {query!r} lists {result!r}: {describe_types(result, by_text[str(result)])}")
