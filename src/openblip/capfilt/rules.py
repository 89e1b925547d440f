"""The rule that keeps or drops a text by its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from openblip.errors import InputError

Keep: TypeAlias = Literal["itm", "itc", "both"]
ITM_THRESHOLD = 0.5
"""The paper's rule: drop a text that the ITM head calls unmatched."""


class RuleFields(TypedDict):
    """The fields of a rule, as JSON stores them."""

    keep: Keep
    itm_threshold: float
    itc_threshold: float | None


@dataclass(frozen=True)
class Rule:
    """Keeps a text whose scores reach their thresholds.

    Attributes:
        keep: The scores to compare: "itm", "itc" or "both".
        itm_threshold: Minimum probability of a match. 0.5 is the paper's rule (section 3.3).
        itc_threshold: Minimum cosine. Required with "itc" and "both", because its scale depends on the model.

    Raises:
        InputError: A threshold is missing, out of range or without effect.
    """

    keep: Keep = "itm"
    itm_threshold: float = ITM_THRESHOLD
    itc_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.keep not in get_args(Keep):
            raise InputError(f"keep must be 'itm', 'itc' or 'both', got {self.keep!r}")
        if not 0 <= self.itm_threshold <= 1:
            raise InputError(f"itm_threshold must be between 0 and 1, got {self.itm_threshold}")
        if self.keep == "itm" and self.itc_threshold is not None:
            raise InputError("itc_threshold needs keep='itc' or keep='both', got keep='itm'")
        if self.keep != "itm" and self.itc_threshold is None:
            raise InputError(
                f"keep={self.keep!r} needs itc_threshold, because its scale depends on the model; see the report"
            )
        if self.itc_threshold is not None and not -1 <= self.itc_threshold <= 1:
            raise InputError(f"itc_threshold must be between -1 and 1, got {self.itc_threshold}")
        if self.keep == "itc" and self.itm_threshold != ITM_THRESHOLD:
            raise InputError("itm_threshold needs keep='itm' or keep='both', got keep='itc'")

    def accepts(self, itm: NDArray[np.floating], itc: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return which texts are kept.

        Args:
            itm: Probabilities of a match (T,); NaN for a text without scores.
            itc: Cosines (T,).

        Returns:
            True for the texts to keep (T,).
        """
        accepted = np.isfinite(itm) & np.isfinite(itc)
        if self.keep != "itc":
            accepted &= itm >= self.itm_threshold
        if self.keep != "itm":
            accepted &= itc >= (self.itc_threshold or 0.0)
        return accepted

    def to_dict(self) -> RuleFields:
        """Return the rule as a dictionary for JSON.

        Returns:
            The fields by name.
        """
        return RuleFields(keep=self.keep, itm_threshold=self.itm_threshold, itc_threshold=self.itc_threshold)

    @staticmethod
    def from_dict(values: RuleFields) -> Rule:
        """Return the rule that `to_dict` stored.

        Args:
            values: The fields by name.

        Returns:
            The rule.
        """
        return Rule(**values)

    def __str__(self) -> str:
        """Return the rule as a condition."""
        conditions = []
        if self.keep != "itc":
            conditions.append(f"ITM probability >= {self.itm_threshold:g}")
        if self.keep != "itm":
            conditions.append(f"ITC cosine >= {self.itc_threshold:g}")
        return " and ".join(conditions)
