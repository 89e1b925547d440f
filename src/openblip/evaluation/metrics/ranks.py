"""Retrieval: how often what belongs together is found among the first k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.ids import check_ids, other_kind

KS = (1, 5, 10)


@dataclass(frozen=True)
class RecallScores:
    """Share of queries (0 to 1) with a right item among the first k, and the median of the best ranks, from 1."""

    recall: dict[int, float]
    median_rank: float
    items: dict[Any, int]  # the rank, from 1, of each query's best right item

    @property
    def mean_recall(self) -> float:
        return mean(self.recall.values())


def from_ranks(ranks: Mapping[Any, int]) -> RecallScores:
    """Scores from the rank, from 1, of each query's best right item.

    Raises :class:`EvaluationError` if there is no query.
    """
    if not ranks:
        raise EvaluationError("there are no queries, so there is nothing to score")
    return RecallScores(
        {k: sum(rank <= k for rank in ranks.values()) / len(ranks) for k in KS},
        float(median(ranks.values())),
        dict(ranks),
    )


def from_matrix(scores: NDArray[np.floating[Any]], right: Sequence[Sequence[int]]) -> RecallScores:
    """Scores from a matrix (queries, candidates), the higher the better; ``right`` lists each query's right candidates.

    Of equal scores the candidate that comes first is ranked first. Raises :class:`EvaluationError` if there is no
    query, or one without a right candidate.
    """
    if len(scores) != len(right):
        raise EvaluationError(f"{len(scores)} rows of scores for {len(right)} queries")
    ranks = {}
    for query, row in enumerate(scores):
        if not len(right[query]):
            raise EvaluationError(f"query {query} has no right candidate")
        order = np.argsort(-row, kind="stable")
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        ranks[query] = 1 + int(places[list(right[query])].min())
    return from_ranks(ranks)


def from_lists(found: Mapping[Any, Sequence[Any]], right: Mapping[Any, Sequence[Any]]) -> RecallScores:
    """Scores from the ids found for each query, the best first. What is not in the list counts as never found.

    Raises :class:`EvaluationError` for a missing or unknown query, an id that is listed twice, or ids that the two
    sides write differently, as "1" and 1: nothing could be found by them.
    """
    check_ids(found, right)
    _check_kinds(found, right)
    ranks = {}
    for query, wanted in right.items():
        if len(set(found[query])) < len(found[query]):
            raise EvaluationError(f"id {query!r} lists a result twice")
        places = [i for i, item in enumerate(found[query], 1) if item in set(wanted)]
        ranks[query] = places[0] if places else NEVER
    return from_ranks(ranks)


def _check_kinds(found: Mapping[Any, Sequence[Any]], right: Mapping[Any, Sequence[Any]]) -> None:
    wanted = {item for items in right.values() for item in items}
    spelled = {str(item): item for item in wanted}
    for query, listed in found.items():
        for item in listed:
            if item not in wanted and str(item) in spelled:
                raise EvaluationError(f"id {query!r} lists {item!r}: {other_kind(item, spelled[str(item)])}")


NEVER = 1_000_000_000
