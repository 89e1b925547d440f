"""Timing of contestants in turn, round after round, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np


@dataclass
class Timed:
    """Seconds of one contestant for a row, round by round, and its first output."""

    seconds: list[float] = field(default_factory=list)
    output: Any = None

    @property
    def median(self) -> float:
        """Median of the rounds in seconds."""
        return statistics.median(self.seconds)


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    scales: Mapping[str, float],
    *,
    rounds: int | None,
    budget: float,
    limits: tuple[int, int] = (2, 9),
) -> dict[str, Timed]:
    """Time all calls once per round, after one call of each that is not timed.

    The order rotates from round to round.

    Args:
        calls: Calls by contestant.
        scales: Factors for the times of each contestant, whose call may be a part of the row.
        rounds: Number of rounds. By default, rounds start until the budget is used.
        budget: Seconds after which no further round starts.
        limits: Minimum and maximum number of rounds by default.

    Returns:
        Times and outputs by contestant.
    """
    results = {name: Timed() for name in calls}
    start_time = time.perf_counter()
    for name, call in calls.items():
        results[name].output = call()
    order = list(calls)
    min_rounds, max_rounds = (rounds, rounds) if rounds else limits
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() - start_time > budget:
            break
        shift = done % len(order)
        for name in order[shift:] + order[:shift]:
            start = time.perf_counter()
            calls[name]()
            results[name].seconds.append((time.perf_counter() - start) * scales[name])
    return results


@dataclass(frozen=True)
class Ratio:
    """Speedup over the rounds: median, minimum and maximum of the ratio of times."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}-{self.high:.2f}]"


def ratio(slower: list[float], faster: list[float]) -> Ratio:
    """Return the speedup of `faster` over `slower`, from their times in the same rounds."""
    ratios = [slow / fast for slow, fast in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Agreement:
    """Agreement of an output with the reference: `same` if they differ by float32 rounding at most."""

    same: bool
    text: str


def agreement(output: Any, reference: Any) -> Agreement:
    """Compare an output with the reference, up to the length of the shorter one.

    Args:
        output: Texts, or an array of numbers.
        reference: The same kind of output.

    Returns:
        The share of equal texts and words, or the largest difference, of which 1e-4 counts as rounding.
    """
    count = min(len(output), len(reference))
    if isinstance(reference, list):
        equal = sum(text == expected for text, expected in zip(output, reference, strict=False))
        words: list[bool] = []
        for text, expected in zip(output, reference, strict=False):
            pairs = zip_longest(text.split(), expected.split())  # a missing word counts as wrong
            words += [word == expected_word for word, expected_word in pairs]
        share = sum(words) / max(1, len(words))
        return Agreement(equal == count, f"{equal}/{count} texts" + ("" if equal == count else f", {share:.0%} words"))
    values, expected_values = np.asarray(output)[:count], np.asarray(reference)[:count]
    difference = float(np.abs(values - expected_values).max())
    summary = f"differ by {difference:.0e}"
    if values.ndim == 2 and np.allclose(np.linalg.norm(expected_values, axis=1), 1, atol=1e-3):
        summary += f", cos {float((values * expected_values).sum(1).min()):.4f}"
    return Agreement(difference <= 1e-4, summary)
