"""Recall, IoU and the bootstrap: compared with brute force and with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.errors import EvaluationError
from openblip.evaluation.metrics import bootstrap, boxes, ranks


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_ranks_of_a_matrix_equal_ranks_of_sorted_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(60).reshape(4, 15).astype(float)  # all different
    relevant = [sorted(rng.choice(15, size=3, replace=False).tolist()) for _ in range(4)]
    recall = ranks.score_matrix(scores, relevant)
    for query, row in enumerate(scores.tolist()):
        ordered = sorted(range(15), key=lambda j, row=row: -row[j])  # type: ignore[misc]
        assert recall.items[query] == 1 + min(ordered.index(j) for j in relevant[query])
    rankings = {query: np.argsort(-row).tolist() for query, row in enumerate(scores)}
    assert ranks.score(rankings, dict(enumerate(relevant))) == recall


def test_recall_and_median_by_hand() -> None:
    scores = ranks.score_ranks({"a": 1, "b": 2, "c": 5, "d": 11})
    assert scores.recall == {1: 0.25, 5: 0.75, 10: 0.75}
    assert scores.median_rank == 3.5
    assert scores.mean_recall == pytest.approx(1.75 / 3)
    missed = ranks.score({"a": ["x"]}, {"a": ["y"]})
    assert missed.recall[10] == 0
    with pytest.raises(EvaluationError, match="'a' lists a result twice"):
        ranks.score({"a": ["x", "x"]}, {"a": ["x"]})


def test_equal_scores_rank_the_lower_number_first() -> None:
    assert ranks.score_matrix(np.zeros((1, 5)), [[3]]).items == {0: 4}


def test_missing_queries_and_candidates_are_errors() -> None:
    with pytest.raises(EvaluationError, match="query 1 has no relevant candidate"):
        ranks.score_matrix(np.zeros((3, 5)), [[3], [], [1]])
    with pytest.raises(EvaluationError, match="there are no queries"):
        ranks.score_matrix(np.zeros((0, 5)), [])
    with pytest.raises(EvaluationError, match="there are no queries"):
        ranks.score_ranks({})
    with pytest.raises(EvaluationError, match="id 'a' has no references"):
        ranks.score({"a": ["x"]}, {"a": []})


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=8, max_size=8))
def test_iou_counts_pixels(edges: list[int]) -> None:
    def pixels(x_min: int, y_min: int, x_max: int, y_max: int) -> set[tuple[int, int]]:
        return {(x, y) for x in range(x_min, x_max) for y in range(y_min, y_max)}

    a, b = edges[:4], edges[4:]
    intersection = pixels(*a) & pixels(*b)
    union = pixels(*a) | pixels(*b)
    assert boxes.iou(a, b) == pytest.approx(len(intersection) / len(union) if union else 0)


def test_iou_equal_to_the_threshold_counts() -> None:
    scores = boxes.score({1: [0, 0, 1, 1], 2: [0, 0, 1, 1]}, {1: [0, 0, 2, 1], 2: [0, 0, 2.01, 1]})
    assert scores.items[1] == 0.5
    assert scores.accuracy == 0.5
    assert scores.mean_iou == pytest.approx((0.5 + 1 / 2.01) / 2)
    with pytest.raises(EvaluationError, match="the box of id 1"):
        boxes.score({1: [0, 0, float("nan"), 1]}, {1: [0, 0, 1, 1]})


def test_the_bootstrap_separates_a_difference_from_chance() -> None:
    rng = np.random.default_rng(0)
    baseline = {i: float(v) for i, v in enumerate(rng.normal(size=200))}
    better = {i: v + 0.1 + 0.1 * rng.normal() for i, v in baseline.items()}
    result = bootstrap.paired(baseline, better, samples=500)
    assert result.p == pytest.approx(2 / 501), "the smallest value of 500 resamples"
    assert result.low < result.difference < result.high
    # Close to the interval of a normal distribution of the mean of paired differences.
    spread = np.std([better[i] - baseline[i] for i in baseline]) / np.sqrt(200)
    assert result.high - result.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    same = bootstrap.paired(baseline, {i: v + 0.1 * rng.normal() for i, v in baseline.items()}, samples=500)
    assert 0.01 < same.p < 0.99


def test_a_worse_model_has_the_p_value_of_a_better_one() -> None:
    rng = np.random.default_rng(1)
    baseline = {i: float(v) for i, v in enumerate(rng.normal(size=80))}
    worse = {i: v - 0.3 * rng.random() for i, v in baseline.items()}
    there, back = bootstrap.paired(baseline, worse, samples=500), bootstrap.paired(worse, baseline, samples=500)
    assert there.high < 0 < back.low
    assert there.p == back.p < 0.01
    equal = bootstrap.paired(baseline, baseline, samples=200)
    assert (equal.difference, equal.p) == (0, 1)


@pytest.mark.parametrize("shift", [-0.12, -0.02, 0.0, 0.05, 0.1])
def test_the_bootstrap_agrees_with_scipy(shift: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    differences = rng.gamma(2.0, 0.25, size=60) - 0.5 + shift  # skewed, as the scores of items are
    result = bootstrap.paired(dict.fromkeys(range(60), 0.0), dict(enumerate(map(float, differences))), samples=10_000)
    peer = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=10_000, rng=3, batch=1000)
    assert result.low == pytest.approx(peer.confidence_interval.low, abs=0.01)
    assert result.high == pytest.approx(peer.confidence_interval.high, abs=0.01)
    # The p-value at which the interval of scipy's resamples just touches zero, and that of the paired t-test.
    percentile = stats.percentileofscore(peer.bootstrap_distribution, 0.0) / 100
    assert result.p == pytest.approx(2 * min(percentile, 1 - percentile), abs=0.02)
    assert result.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.05)
