"""Is one model better than another, or was it luck? A paired bootstrap over the items of a test set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openblip.evaluation.metrics.ids import check_ids


@dataclass(frozen=True)
class Comparison:
    """``difference`` of the means (second minus first), the interval of 95 % around it, and the share of resamples in
    which the second is not better than the first: the one-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


def paired(first: Mapping[Any, float], second: Mapping[Any, float], samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two models by their scores on the same items, resampling the items with replacement.

    The same items are drawn for both, so that what is hard for both does not count as a difference.
    """
    check_ids(first, second)
    differences = np.array([second[key] - first[key] for key in first], dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(differences, len(differences)).mean() for _ in range(samples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(float(differences.mean()), float(low), float(high), float((means <= 0).mean()))
