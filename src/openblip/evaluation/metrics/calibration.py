"""From a score to a probability: Platt scaling, and how far stated probabilities are from observed frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openblip.confidence import Calibration, log_odds
from openblip.errors import EvaluationError


def fit_calibration(
    scores: Sequence[float], outcomes: Sequence[bool], matches: Sequence[float] | None = None, steps: int = 50
) -> Calibration:
    """Fit a logistic function by Newton's method, towards Platt's slightly softened targets.

    Args:
        scores: Scores of the statements, such as mean log-probabilities per token.
        outcomes: Whether each statement was right.
        matches: Probabilities of a match by ITM, to be weighed with the scores.
        steps: The most steps; a few usually suffice.

    Raises:
        EvaluationError: If all outcomes are equal, so that there is nothing to tell apart.
    """
    right = sum(outcomes)
    wrong = len(outcomes) - right
    if not right or not wrong:
        raise EvaluationError(f"a calibration needs right and wrong outcomes, got {right} right and {wrong} wrong")
    targets = np.where(outcomes, (right + 1) / (right + 2), 1 / (wrong + 2))
    columns = [np.asarray(scores, float), np.ones(len(outcomes))]
    if matches is not None:
        columns.append(np.array([log_odds(match) for match in matches]))
    features = np.stack(columns, 1)
    ridge = 1e-6 * np.eye(len(columns))  # a touch, which keeps separable scores finite
    weights = np.zeros(len(columns))
    weights[1] = math.log((right + 1) / (wrong + 1))
    for _ in range(steps):
        probabilities = 0.5 * (1 + np.tanh(features @ weights / 2))  # the logistic function, without overflow
        gradient = features.T @ (probabilities - targets) + ridge @ weights
        curvature = (features.T * (probabilities * (1 - probabilities))) @ features + ridge
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    return Calibration(*weights.tolist())


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 10) -> float:
    """Return the mean distance of stated probabilities from observed frequencies, over bins of equal width.

    Guo et al. 2017, equation 3.
    """
    if not probabilities:
        raise EvaluationError("a calibration error needs at least one probability")
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for probability, outcome in zip(probabilities, outcomes, strict=True):
        members[min(int(probability * bins), bins - 1)].append((probability, outcome))
    error = 0.0
    for group in members:
        if group:
            stated = sum(probability for probability, _ in group)
            observed = sum(outcome for _, outcome in group)
            error += abs(stated - observed)
    return error / len(probabilities)


def calibration_error_by_chance(
    probabilities: Sequence[float], bins: int = 10, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the mean and the 95 % quantile of the error that a perfect calibration would have.

    Few statements leave an expected calibration error above 0 even if every probability is right. Outcomes are drawn
    with the stated probabilities.

    Args:
        probabilities: The stated probabilities.
        bins: Number of bins of the error.
        samples: Number of draws of all outcomes.
        seed: Seed of the draws.
    """
    stated = np.asarray(probabilities, float)
    bin_of = np.minimum((stated * bins).astype(int), bins - 1)
    outcomes = np.random.default_rng(seed).random((samples, len(stated))) < stated
    gaps = [np.abs((outcomes - stated)[:, bin_of == index].sum(1)) for index in range(bins)]
    errors = np.sum(gaps, 0) / len(stated)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the probability that a positive scores above a negative (AUC); equal scores count half."""
    ranked = sorted([*((score, 1) for score in positives), *((score, 0) for score in negatives)])
    total, start = 0.0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        tied = ranked[start:end]
        total += sum(label for _, label in tied) * (start + end + 1) / 2  # the mean rank, from 1
        start = end
    count = len(positives)
    return (total - count * (count + 1) / 2) / (count * len(negatives))
