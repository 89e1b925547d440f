"""Calibration, calibration error and AUC against second ways to compute them; and the rule for main subjects."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from openblip.confidence import Calibration
from openblip.errors import EvaluationError
from openblip.evaluation.metrics.calibration import (
    area_under_curve,
    calibration_error_by_chance,
    expected_calibration_error,
    fit_calibration,
)
from openblip.evaluation.metrics.subjects import accepted_words, names_subject, singular, subject_accuracy

ROOT = Path(__file__).parents[2]


def drawn(count: int = 2000, slope: float = 3.0, intercept: float = 4.0) -> tuple[list[float], list[bool]]:
    """Scores and outcomes whose probability is a logistic function of the score."""
    rng = random.Random(0)
    scores = [rng.gauss(-1.5, 0.6) for _ in range(count)]
    truth = Calibration(slope, intercept)
    return scores, [rng.random() < truth.probability(score) for score in scores]


def test_a_fit_minimizes_the_cross_entropy() -> None:
    scores, outcomes = drawn(300)
    right = sum(outcomes)
    targets = np.where(outcomes, (right + 1) / (right + 2), 1 / (len(outcomes) - right + 2))

    def cross_entropy(slope: float, intercept: float) -> float:
        logits = slope * np.asarray(scores) + intercept
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    fitted = fit_calibration(scores, outcomes)
    least = cross_entropy(fitted.slope, fitted.intercept)
    for slope in (-1e-2, 0.0, 1e-2):
        for intercept in (-1e-2, 0.0, 1e-2):
            if slope or intercept:
                assert cross_entropy(fitted.slope + slope, fitted.intercept + intercept) > least


def test_a_fit_finds_what_the_outcomes_were_drawn_from() -> None:
    scores, outcomes = drawn(20000)
    fitted = fit_calibration(scores, outcomes)
    assert (fitted.slope, fitted.intercept) == pytest.approx((3.0, 4.0), rel=0.1)
    fresh, results = drawn(4000)
    assert expected_calibration_error([fitted.probability(score) for score in fresh], results) < 0.03


def test_outcomes_that_scores_separate_stay_finite() -> None:
    fitted = fit_calibration([-2.0, -1.9, -1.0, -0.9], [False, False, True, True])
    assert math.isfinite(fitted.slope)
    assert fitted.probability(-0.9) > 0.7 > 0.3 > fitted.probability(-2.0)
    with pytest.raises(EvaluationError, match="3 right and 0 wrong"):
        fit_calibration([1.0, 2.0, 3.0], [True] * 3)


def test_probabilities_do_not_overflow() -> None:
    steep = Calibration(1000.0, 0.0)
    assert (steep.probability(-5.0), steep.probability(0.0), steep.probability(5.0)) == (0.0, 0.5, 1.0)


def test_calibration_error_by_hand() -> None:
    probabilities = [0.15, 0.12, 0.95, 0.91, 0.99, 1.0]
    outcomes = [True, False, True, False, True, True]
    low, high = abs(0.27 / 2 - 1 / 2), abs(3.85 / 4 - 3 / 4)
    assert expected_calibration_error(probabilities, outcomes) == pytest.approx(2 / 6 * low + 4 / 6 * high)
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0
    with pytest.raises(EvaluationError, match="at least one"):
        expected_calibration_error([], [])


def test_the_error_by_chance_is_the_error_of_drawn_outcomes() -> None:
    rng = random.Random(0)
    probabilities = [rng.random() ** 0.5 for _ in range(150)]
    errors = [expected_calibration_error(probabilities, [rng.random() < p for p in probabilities]) for _ in range(1000)]
    mean, high = calibration_error_by_chance(probabilities)
    assert mean == pytest.approx(np.mean(errors), rel=0.03)
    assert high == pytest.approx(np.quantile(errors, 0.95), rel=0.05)
    assert calibration_error_by_chance([0.0, 1.0]) == (0, 0)


def test_auc_counts_pairs() -> None:
    rng = random.Random(1)
    positives = [rng.randint(0, 9) / 10 for _ in range(40)]
    negatives = [rng.randint(0, 7) / 10 for _ in range(50)]
    wins = sum((a > b) + 0.5 * (a == b) for a in positives for b in negatives)
    assert area_under_curve(positives, negatives) == pytest.approx(wins / 2000)


CAPTIONS = ["A dog runs on the beach.", "Two dogs are running.", "a brown dog", "the beach", "a beach with waves"]


def test_a_subject_is_what_three_captions_name() -> None:
    assert accepted_words(CAPTIONS) == {"dog", "puppy", "beach"}
    assert accepted_words(["a boy", "a boy", "a boy"]) == {"boy", "child", "kid", "person"}
    assert accepted_words(["a man", "a man", "a guy"]) == frozenset(), "synonyms are not counted together"
    assert names_subject("there are dogs", {"dog"})
    assert not names_subject("a hotdog", {"dog"})
    assert names_subject("a man", {"men"})
    assert subject_accuracy(["a dog", "a cat"], [{"dog"}, {"dog"}]) == 0.5


@pytest.mark.parametrize(
    ("word", "expected"),
    [("boxes", "box"), ("benches", "bench"), ("glass", "glass"), ("people", "person"), ("tennis", "tennis"),
     ("horses", "horse"), ("puppies", "puppy")],
)  # fmt: skip
def test_singulars(word: str, expected: str) -> None:
    assert singular(word) == expected


def test_subject_words_are_fixed_for_every_example_photo() -> None:
    words = yaml.safe_load((ROOT / "recipes" / "pocket" / "subjects.yaml").read_text(encoding="utf-8"))
    assert set(words["examples"]) == {path.name for path in (ROOT / "examples" / "photos").glob("*.jpg")}
    assert len(words["samples"]) == 24
    assert all(words[part][name] for part in words for name in words[part])
