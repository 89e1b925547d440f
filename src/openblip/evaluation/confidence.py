"""Fit and check the calibration of a captioner: the probability that a caption names the subject of its image.

The accepted words of an image are those that at least three of its captions agree on (`metrics/subjects.py`). Every
other image is used to fit the calibration, and the images between them to check it.
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
from openblip.evaluation.metrics.calibration import area_under_curve, expected_calibration_error, fit_calibration
from openblip.evaluation.metrics.subjects import accepted_words, names_subject

Row = tuple[float, float | None, bool]  # score, probability of a match, whether the caption names the subject


@dataclass(frozen=True)
class FittedConfidence:
    """A calibration and how well it does on images that it was not fitted on.

    Attributes:
        confidence: The calibration.
        figures: Numbers of images, share of right captions, expected calibration error (ECE) and area under the curve
            (AUC) on the second half.
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
        "by score": _check(calibration, checking),
    }
    if confidence.with_itm is not None:
        figures["with ITM"] = _check(confidence.with_itm, checking)
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


def _check(calibration: Calibration, rows: list[Row]) -> dict[str, float]:
    probabilities = [calibration.probability(score, 0.5 if match is None else match) for score, match, _ in rows]
    outcomes = [right for _, _, right in rows]
    figures = {"ECE": round(expected_calibration_error(probabilities, outcomes), 4)}
    right = [p for p, outcome in zip(probabilities, outcomes, strict=True) if outcome]
    wrong = [p for p, outcome in zip(probabilities, outcomes, strict=True) if not outcome]
    if right and wrong:
        figures["AUC"] = round(area_under_curve(right, wrong), 4)
    return figures
