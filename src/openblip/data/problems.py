"""Records that could not be used, and a report that counts them (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from openblip.data.skips import Skips

_MAX_REASONS = 30
_MAX_ADDRESSES = 5


@dataclass(frozen=True)
class Problem:
    """The address of a record that could not be used, and the reason.

    Attributes:
        address: Where the record is.
        reason: Why it cannot be used.
        kind: Kind of files or rows that are passed over, in the singular; "" if the record is one that failed.
        count: Number of such files or rows.
    """

    address: str
    reason: str
    kind: str = ""
    count: int = 1

    def __str__(self) -> str:
        return self.reason if self.address in self.reason else f"{self.address}: {self.reason}"


@dataclass
class Report:
    """Counts bad records. Each record counts once.

    Attributes:
        problems: The first `max_listed` problems.
        max_listed: Number of problems to list.
        reasons: Number of records by reason.
        skips: Files that were passed over; they do not count as bad records.
    """

    problems: list[Problem] = field(default_factory=list)
    max_listed: int = 1000
    reasons: Counter[str] = field(default_factory=Counter)
    skips: Skips = field(default_factory=Skips)
    _addresses: set[str] = field(default_factory=set)

    def add(self, problem: Problem) -> bool:
        """Count a bad record; return `False` if it was counted already."""
        if problem.address in self._addresses:
            return False
        self._addresses.add(problem.address)
        self.reasons[problem.reason.replace(problem.address, "it")] += 1
        if len(self.problems) < self.max_listed:
            self.problems.append(problem)
        return True

    def extend(self, problems: Iterable[Problem]) -> None:
        """Count several bad records."""
        for problem in problems:
            self.add(problem)

    def __len__(self) -> int:
        return len(self._addresses)

    def __str__(self) -> str:
        """Return a summary: the number of bad records, the commonest reasons, the first addresses, and the skips."""
        lines = ["no bad records"]
        if self._addresses:
            common = ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(_MAX_REASONS))
            lines = [f"{len(self)} bad records skipped: {common}", *map(str, self.problems[:_MAX_ADDRESSES])]
            lines += ["..."] if len(self) > _MAX_ADDRESSES else []
        if self.skips.counts:
            lines.append(f"skipped: {self.skips.describe()}")
        return "\n  ".join(lines)
