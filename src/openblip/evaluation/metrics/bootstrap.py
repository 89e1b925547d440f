"""Paired bootstrap: is one model better than another, or is the difference chance?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openblip.evaluation.metrics.ids import Id, check_ids


@dataclass(frozen=True)
class BootstrapResult:
    """The difference between two models on the same items.

    Attributes:
        difference: The mean of the second model minus the mean of the first.
        low: The lower end of the 95 % interval of the difference.
        high: The upper end of the 95 % interval of the difference.
        p: The two-sided p-value of "the models are equal": twice the share of resamples on the rarer side of zero. Its
            smallest value is 2 / (samples + 1).
    """

    difference: float
    low: float
    high: float
    p: float


def resample_sums(table: NDArray[np.float64], samples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Return the sums of the columns of a table over resamples of its rows.

    Shapes: N items, C columns, S resamples.

    Args:
        table: The values (N, C) of each item.
        samples: The number of resamples.
        seed: The seed of the random numbers.

    Returns:
        The sums (S, C).
    """
    rng = np.random.default_rng(seed)
    count = len(table)
    weights = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(samples))
    return np.stack([row.astype(np.float64) @ table for row in weights])


def mean_intervals(scores: Mapping[str, Collection[float]], samples: int = 1000) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals of means over items, by the percentile bootstrap.

    Args:
        scores: The score of each item, by metric; all metrics of the same items.
        samples: The number of resamples.

    Returns:
        The lower and the upper end of each interval. Nothing if there are fewer than two items.
    """
    if not scores or len(next(iter(scores.values()))) < 2:
        return {}
    table = np.array([list(values) for values in scores.values()], dtype=np.float64).T
    ends = np.quantile(resample_sums(table, samples) / len(table), [0.025, 0.975], axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(scores, *ends, strict=True)}


def paired(
    baseline: Mapping[Id, float], candidate: Mapping[Id, float], samples: int = 10_000, seed: int = 0
) -> BootstrapResult:
    """Compare two models by their scores on the same items (Efron and Tibshirani 1993, chapter 16).

    Items are resampled with replacement, the same items for both models, so an item that is hard for both models does
    not count as a difference.

    Args:
        baseline: The score of each item under the first model, by id.
        candidate: The score of each item under the second model, by the same ids.
        samples: The number of resamples.
        seed: The seed of the random numbers.

    Returns:
        The difference of the means (`candidate` minus `baseline`), its interval and its two-sided p-value, which is
        below 0.05 where the interval excludes zero.

    Raises:
        EvaluationError: If the two have different ids, or no ids.
    """
    check_ids(baseline, candidate)
    differences = np.array([candidate[key] - baseline[key] for key in baseline], dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(differences, len(differences)).mean() for _ in range(samples)])
    low, high = np.quantile(means, [0.025, 0.975])
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (int(rarer) + 1) / (samples + 1))  # the sample itself counts as a resample: p is never 0
    return BootstrapResult(float(differences.mean()), float(low), float(high), p)
