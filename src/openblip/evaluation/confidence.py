"""Fit and check the calibration of a captioner: the probability that a caption names the subject of its image.

The accepted words of an image are those that at least three of its captions agree on, and their synonyms
(`metrics/subjects.py`). Every other image is used to fit the calibration, and the images between them to check it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from openblip.blip import Blip
from openblip.confidence import Calibration, Confidence
from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.errors import EvaluationError
from openblip.evaluation.metrics.calibration import (
    area_under_curve,
    calibration_error_by_chance,
    expected_calibration_error,
    fit_calibration,
)
from openblip.evaluation.metrics.subjects import accepted_words, names_subject

Row = tuple[float, float | None, bool]  # score, probability of a match, whether the caption names the subject
FOLDS = 10


@dataclass(frozen=True)
class FittedConfidence:
    """A calibration and how well it does on images that it was not fitted on.

    Attributes:
        confidence: The calibration.
        figures: Numbers of images, and on the second half: share of right captions, expected calibration error (ECE),
            the mean and the 95 % quantile of the ECE of a perfect calibration ("by chance"), and area under the curve
            (AUC). "cross-validated" has the same for all images, each with a calibration fitted on nine tenths of the
            images without it; few images leave it out.
    """

    confidence: Confidence
    figures: dict[str, Any]


def fit_confidence(blip: Blip, records: Iterable[Record], *, itm: bool = False) -> FittedConfidence:
    """Fit a calibration on every other image, and measure it on the others.

    Args:
        blip: A model that captions. Captions have the default settings.
        records: Images with captions by people. Those without a word that captions agree on are left out.
        itm: Also fit a calibration that takes the match of caption and image into account. The model must match.

    Raises:
        EvaluationError: If there are too few images, or if the score does not tell right captions from wrong ones.
    """
    usable = [(record, words) for record in records if (words := accepted_words(record.captions))]
    if len(usable) < 4:
        raise EvaluationError(
            f"a calibration needs at least 4 images whose captions agree on a word, got {len(usable)}"
        )
    images = [open_image(record.images[0]) for record, _ in usable]
    captions = blip.caption(images)
    matches: list[float | None] = [None] * len(images)
    if itm:
        results = blip.match(images, [caption.text for caption in captions], paired=True)
        matches = [result.probability for result in results]
    rows: list[Row] = []
    for caption, match, (_, words) in zip(captions, matches, usable, strict=True):
        rows.append((caption.score, match, names_subject(caption.text, words)))
    fitting, checking = rows[::2], rows[1::2]
    calibration = _fit(fitting, itm=False)
    confidence = Confidence(calibration, _fit(fitting, itm=True) if itm else None)
    figures: dict[str, Any] = {
        "fitted on": len(fitting),
        "checked on": len(checking),
        "names the subject": round(sum(right for _, _, right in checking) / len(checking), 4),
        "by score": _check([calibration.probability(score) for score, _, _ in checking], checking),
    }
    rights = sum(right for _, _, right in rows)
    if min(rights, len(rows) - rights) >= 2 * FOLDS:
        figures["cross-validated"] = _cross_validate(rows)
    if confidence.with_itm is not None:
        itm_probabilities = [confidence.with_itm.probability(score, match or 0.0) for score, match, _ in checking]
        figures["with ITM"] = _check(itm_probabilities, checking)
    return FittedConfidence(confidence, figures)


def _fit(rows: list[Row], *, itm: bool) -> Calibration:
    scores, outcomes = [score for score, _, _ in rows], [right for _, _, right in rows]
    matches = [match for _, match, _ in rows if match is not None] if itm else None
    calibration = fit_calibration(scores, outcomes, matches)
    if calibration.slope <= 0 or (itm and calibration.itm_slope <= 0):
        raise EvaluationError(
            f"likelier captions must name the subject more often, got a slope of {calibration.slope:.3f}"
            + (f" and of {calibration.itm_slope:.3f} for ITM" if itm else "")
        )
    return calibration


def _cross_validate(rows: list[Row]) -> dict[str, Any]:
    """Return the figures of all rows, each by a calibration that was fitted without its fold."""
    probabilities = [0.0] * len(rows)
    for fold in range(FOLDS):
        fitting = [row for index, row in enumerate(rows) if index % FOLDS != fold]
        calibration = fit_calibration([score for score, _, _ in fitting], [right for _, _, right in fitting])
        for index in range(fold, len(rows), FOLDS):
            probabilities[index] = calibration.probability(rows[index][0])
    return _check(probabilities, rows)


def _check(probabilities: list[float], rows: list[Row]) -> dict[str, Any]:
    outcomes = [right for _, _, right in rows]
    by_chance = [round(value, 4) for value in calibration_error_by_chance(probabilities)]
    figures: dict[str, Any] = {
        "ECE": round(expected_calibration_error(probabilities, outcomes), 4),
        "by chance": by_chance,
    }
    right = [p for p, outcome in zip(probabilities, outcomes, strict=True) if outcome]
    wrong = [p for p, outcome in zip(probabilities, outcomes, strict=True) if not outcome]
    if right and wrong:
        figures["AUC"] = round(area_under_curve(right, wrong), 4)
    return figures
