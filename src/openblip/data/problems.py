"""Records that could not be used, and a report that counts them (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """A record that could not be used: where it is and why."""

    address: str
    reason: str

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}"


@dataclass
class Report:
    """The bad records met so far. Each is counted once, however often it comes; the first ``kept`` are listed."""

    problems: list[Problem] = field(default_factory=list)
    kept: int = 1000
    reasons: Counter[str] = field(default_factory=Counter)
    _known: set[str] = field(default_factory=set)
    LINES: ClassVar[int] = 5

    def add(self, problem: Problem) -> bool:
        """Count a bad record; False if it was known already."""
        if problem.address in self._known:
            return False
        self._known.add(problem.address)
        self.reasons[problem.reason.replace(problem.address, "it")] += 1
        if len(self.problems) < self.kept:
            self.problems.append(problem)
        return True

    def extend(self, problems: Iterable[Problem]) -> None:
        """Count several."""
        for problem in problems:
            self.add(problem)

    def __len__(self) -> int:
        return len(self._known)

    def __str__(self) -> str:
        """A few lines for a person: how many, the commonest reasons, the first addresses."""
        if not self._known:
            return "no bad records"
        common = ", ".join(f"{times} x {reason}" for reason, times in self.reasons.most_common(self.LINES))
        lines = [f"{len(self)} bad records skipped: {common}", *map(str, self.problems[: self.LINES])]
        return "\n  ".join(lines + (["..."] if len(self) > self.LINES else []))
