"""From a score to a probability: Platt scaling, and how far stated probabilities are from observed frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openblip.errors import EvaluationError


@dataclass(frozen=True)
class Calibration:
    """The probability that a statement is right, as a logistic function of its score (Platt 1999)."""

    slope: float
    intercept: float

    def probability(self, score: float) -> float:
        """Return the probability for a score."""
        logit = self.slope * score + self.intercept
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))


def fit_calibration(scores: Sequence[float], outcomes: Sequence[bool], steps: int = 50) -> Calibration:
    """Fit a logistic function by Newton's method, towards Platt's slightly softened targets.

    Args:
        scores: What was stated, such as mean log-probabilities per token.
        outcomes: Whether each statement was right.
        steps: The most steps; a few usually suffice.

    Raises:
        EvaluationError: If all outcomes are equal, so that there is nothing to tell apart.
    """
    right = sum(outcomes)
    wrong = len(outcomes) - right
    if not right or not wrong:
        raise EvaluationError(f"a calibration needs right and wrong outcomes, got {right} right and {wrong} wrong")
    targets = [(right + 1) / (right + 2) if outcome else 1 / (wrong + 2) for outcome in outcomes]
    calibration = Calibration(0.0, math.log((right + 1) / (wrong + 1)))
    for _ in range(steps):
        gradient, curvature = _derivatives(calibration, scores, targets)
        (a, b), (_, d) = curvature
        determinant = a * d - b * b
        step = (d * gradient[0] - b * gradient[1]) / determinant, (a * gradient[1] - b * gradient[0]) / determinant
        calibration = Calibration(calibration.slope - step[0], calibration.intercept - step[1])
        if max(map(abs, step)) < 1e-10:
            break
    return calibration


def _derivatives(
    calibration: Calibration, scores: Sequence[float], targets: Sequence[float]
) -> tuple[tuple[float, float], tuple[tuple[float, float], tuple[float, float]]]:
    """The gradient and Hessian of the cross-entropy, with a touch of ridge that keeps separable scores finite."""
    slope_gradient, intercept_gradient = 1e-6 * calibration.slope, 1e-6 * calibration.intercept
    a, b, d = 1e-6, 0.0, 1e-6
    for score, target in zip(scores, targets, strict=True):
        probability = calibration.probability(score)
        weight = probability * (1 - probability)
        slope_gradient += (probability - target) * score
        intercept_gradient += probability - target
        a, b, d = a + weight * score * score, b + weight * score, d + weight
    return (slope_gradient, intercept_gradient), ((a, b), (b, d))


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
