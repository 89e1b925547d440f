"""From the scores of a caption to the probability that it names the subject of its image. Free of torch.

A captioner stores its calibration in `config.json`, under the key `openblip`:

    "confidence": {"slope": 3.1, "intercept": 4.2, "with_itm": {"slope": 2.4, "intercept": 3.0, "itm_slope": 0.4}}

`with_itm` is optional. It applies if the captions are also scored by image-text matching (ITM), with the matcher of the
same bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openblip.errors import ConfigError

MAX_LOG_ODDS = 15.0
"""Bound of the log-odds of a match: the logarithm of a probability that is rounded to 0 or 1 is infinite."""


@dataclass(frozen=True)
class Calibration:
    """A probability as a logistic function of scores (Platt 1999).

    Attributes:
        slope: Weight of the mean log-probability per token.
        intercept: Constant.
        itm_slope: Weight of the log-odds of a match by ITM.
    """

    slope: float
    intercept: float
    itm_slope: float = 0.0

    def probability(self, score: float, match: float = 0.5) -> float:
        """Return the probability for a score.

        Args:
            score: Mean log-probability per token.
            match: Probability of a match by ITM.
        """
        logit = self.slope * score + self.intercept
        if self.itm_slope:
            logit += self.itm_slope * log_odds(match)
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True)
class Confidence:
    """The calibration of a captioner.

    Attributes:
        calibration: Calibration of the mean log-probability per token.
        with_itm: Calibration that also takes the probability of a match by ITM.
    """

    calibration: Calibration
    with_itm: Calibration | None = None

    def probability(self, score: float, match: float | None = None) -> float | None:
        """Return the probability that a caption names the subject of its image.

        Args:
            score: Mean log-probability per token of the caption.
            match: Probability of a match of caption and image by ITM, if it was computed.

        Returns:
            The probability; `None` if `match` is given and there is no calibration with it.
        """
        if match is None:
            return self.calibration.probability(score)
        return None if self.with_itm is None else self.with_itm.probability(score, match)

    def to_dict(self) -> dict[str, float | dict[str, float]]:
        """Return the content of the entry in `config.json`."""
        entry: dict[str, float | dict[str, float]] = {
            "slope": self.calibration.slope,
            "intercept": self.calibration.intercept,
        }
        if self.with_itm is not None:
            itm = self.with_itm
            entry["with_itm"] = {"slope": itm.slope, "intercept": itm.intercept, "itm_slope": itm.itm_slope}
        return entry


def parse_confidence(entry: object) -> Confidence:
    """Return the calibration in an entry of `config.json`.

    Args:
        entry: The value of the key "confidence".

    Raises:
        ConfigError: If a number is missing, unknown or not finite, or if the confidence does not rise with the score.
    """
    name = "confidence"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{name} of config.json must be an object with slope and intercept, got {entry!r}")
    values = {key: value for key, value in entry.items() if key != "with_itm"}
    calibration = _parse(name, values, ("slope", "intercept"))
    if "with_itm" not in entry:
        return Confidence(calibration)
    with_itm = entry["with_itm"]
    if not isinstance(with_itm, Mapping):
        raise ConfigError(f"{name}.with_itm of config.json must be an object, got {with_itm!r}")
    return Confidence(calibration, _parse(f"{name}.with_itm", with_itm, ("slope", "intercept", "itm_slope")))


def _parse(name: str, entry: Mapping[str, Any], keys: tuple[str, ...]) -> Calibration:
    if set(entry) != set(keys):
        raise ConfigError(f"{name} of config.json must have {', '.join(keys)}, got {', '.join(entry) or 'nothing'}")
    for key, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{name}.{key} of config.json must be a finite number, got {value!r}")
        if key != "intercept" and value <= 0:
            raise ConfigError(f"{name}.{key} of config.json must be above 0, got {value!r}")
    return Calibration(**{key: float(value) for key, value in entry.items()})


def log_odds(probability: float) -> float:
    """Return the logarithm of p / (1 - p), between `-MAX_LOG_ODDS` and `MAX_LOG_ODDS`."""
    if probability <= 0 or probability >= 1:
        return math.copysign(MAX_LOG_ODDS, probability - 0.5)
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log(probability / (1 - probability))))
