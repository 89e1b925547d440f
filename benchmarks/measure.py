"""Contestants in turn, round after round, so that whatever else the machine does falls on all of them alike."""

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
    """What came of one contestant in one row: seconds of each round for the whole row, and the first output."""

    seconds: list[float] = field(default_factory=list)
    output: Any = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    scales: Mapping[str, float],
    *,
    rounds: int | None,
    budget: float,
    limits: tuple[int, int] = (2, 9),
) -> dict[str, Timed]:
    """Time every call once per round; the first to go changes from round to round.

    Each is called once before, unmeasured. There are ``rounds``, or as many between the ``limits`` as begin within
    ``budget`` seconds. Times are multiplied by ``scales``.
    """
    results = {name: Timed() for name in calls}
    began = time.perf_counter()
    for name, call in calls.items():
        results[name].output = call()
    order = list(calls)
    fewest, most = (rounds, rounds) if rounds else limits
    while (done := len(results[order[0]].seconds)) < most:
        if done >= fewest and time.perf_counter() - began > budget:
            break
        for name in order[done % len(order) :] + order[: done % len(order)] if done else order:
            start = time.perf_counter()
            calls[name]()
            results[name].seconds.append((time.perf_counter() - start) * scales[name])
    return results


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median over rounds of (their seconds / ours), and its lowest and highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}-{self.high:.2f}]"


def ratio(slower: list[float], faster: list[float]) -> Ratio:
    """Of two contestants' rounds, paired."""
    each = [one / other for one, other in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


@dataclass(frozen=True)
class Agreement:
    """How far an output agrees with the reference's: ``same`` if nothing tells them apart but rounding of float32."""

    same: bool
    text: str


def agreement(output: Any, reference: Any) -> Agreement:
    """Of texts: the share that is equal, word for word. Of numbers: the greatest difference; 1e-4 is rounding.

    The shorter of the two says how much is compared.
    """
    count = min(len(output), len(reference))
    if isinstance(reference, list):
        equal = sum(one == other for one, other in zip(output, reference, strict=False))
        words = [
            a == b
            for one, other in zip(output, reference, strict=False)
            for a, b in zip_longest(one.split(), other.split())  # a missing word is a wrong one
        ]
        share = sum(words) / max(1, len(words))
        return Agreement(equal == count, f"{equal}/{count} texts" + ("" if equal == count else f", {share:.0%} words"))
    one, other = np.asarray(output)[:count], np.asarray(reference)[:count]
    difference = float(np.abs(one - other).max())
    text = f"differ by {difference:.0e}"
    if one.ndim == 2 and np.allclose(np.linalg.norm(other, axis=1), 1, atol=1e-3):
        text += f", cos {float((one * other).sum(1).min()):.4f}"
    return Agreement(difference <= 1e-4, text)
