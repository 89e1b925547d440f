"""Recall, IoU and the bootstrap against brute force and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.errors import EvaluationError
from openblip.evaluation.metrics import bootstrap, boxes, ranks


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_ranks_of_a_matrix_are_those_of_sorted_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(60).reshape(4, 15).astype(float)  # no two equal
    right = [sorted(rng.choice(15, size=3, replace=False).tolist()) for _ in range(4)]
    found = ranks.from_matrix(scores, right)
    for query, row in enumerate(scores.tolist()):
        ordered = sorted(range(15), key=lambda j, row=row: -row[j])  # type: ignore[misc]
        assert found.items[query] == 1 + min(ordered.index(j) for j in right[query])
    as_lists = ranks.from_lists({q: np.argsort(-row).tolist() for q, row in enumerate(scores)}, dict(enumerate(right)))
    assert as_lists == found


def test_recall_and_median_by_hand() -> None:
    found = ranks.from_ranks({"a": 1, "b": 2, "c": 5, "d": 11})
    assert found.recall == {1: 0.25, 5: 0.75, 10: 0.75}
    assert found.median_rank == 3.5
    assert found.mean_recall == pytest.approx(1.75 / 3)
    missed = ranks.from_lists({"a": ["x"]}, {"a": ["y"]})
    assert missed.recall[10] == 0
    with pytest.raises(EvaluationError, match="'a' lists a result twice"):
        ranks.from_lists({"a": ["x", "x"]}, {"a": ["x"]})


def test_of_equal_scores_the_first_comes_first() -> None:
    assert ranks.from_matrix(np.zeros((1, 5)), [[3]]).items == {0: 4}


def test_nothing_to_find_is_said() -> None:
    with pytest.raises(EvaluationError, match="query 1 has no right candidate"):
        ranks.from_matrix(np.zeros((3, 5)), [[3], [], [1]])
    with pytest.raises(EvaluationError, match="there are no queries"):
        ranks.from_matrix(np.zeros((0, 5)), [])
    with pytest.raises(EvaluationError, match="there are no queries"):
        ranks.from_ranks({})
    with pytest.raises(EvaluationError, match="id 'a' has no references"):
        ranks.from_lists({"a": ["x"]}, {"a": []})


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=8, max_size=8))
def test_iou_counts_pixels(edges: list[int]) -> None:
    def pixels(left: int, top: int, right: int, bottom: int) -> set[tuple[int, int]]:
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    a, b = edges[:4], edges[4:]
    both = pixels(*a) & pixels(*b)
    either = pixels(*a) | pixels(*b)
    assert boxes.iou(a, b) == pytest.approx(len(both) / len(either) if either else 0)


def test_half_is_a_hit() -> None:
    found = boxes.score({1: [0, 0, 1, 1], 2: [0, 0, 1, 1]}, {1: [0, 0, 2, 1], 2: [0, 0, 2.01, 1]})
    assert found.items[1] == 0.5
    assert found.accuracy == 0.5
    assert found.mean_iou == pytest.approx((0.5 + 1 / 2.01) / 2)
    with pytest.raises(EvaluationError, match="the box of id 1"):
        boxes.score({1: [0, 0, float("nan"), 1]}, {1: [0, 0, 1, 1]})


def test_the_bootstrap_tells_luck_from_difference() -> None:
    rng = np.random.default_rng(0)
    first = {i: float(v) for i, v in enumerate(rng.normal(size=200))}
    better = {i: v + 0.1 + 0.1 * rng.normal() for i, v in first.items()}
    found = bootstrap.paired(first, better, samples=500)
    assert found.p == 0
    assert found.low < found.difference < found.high
    # Close to what the normal distribution says of the mean of paired differences.
    spread = np.std([better[i] - first[i] for i in first]) / np.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    same = bootstrap.paired(first, {i: v + 0.1 * rng.normal() for i, v in first.items()}, samples=500)
    assert 0.01 < same.p < 0.99
