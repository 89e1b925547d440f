"""METEOR and SPICE, which exist only as their authors' Java programs: run them if they are installed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from openblip.extras import install_hint

PACKAGE = "pycocoevalcap"  # contains the two programs


def score_with_java(
    metric: str, hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, list[float]] | str:
    """Compute METEOR or SPICE with the official program.

    Args:
        metric: "METEOR" or "SPICE".
        hypotheses: The tokens of the caption of each image, without punctuation.
        references: The tokens of the reference captions of each image, without punctuation.

    Returns:
        The score of the corpus and of each image, or the reason why there is none.
    """
    reason = explain_unavailable(metric)
    if reason:
        return reason
    captions = {i: [" ".join(tokens)] for i, tokens in enumerate(hypotheses)}
    targets = {i: [" ".join(tokens) for tokens in texts] for i, texts in enumerate(references)}
    if metric == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor

        corpus, values = Meteor().compute_score(targets, captions)
        return float(corpus), [float(value) for value in values]
    from pycocoevalcap.spice.spice import Spice

    corpus, values = Spice().compute_score(targets, captions)
    return float(corpus), [float(value["All"]["f"]) for value in values]


def explain_unavailable(metric: str) -> str:
    """Return why a metric cannot be computed on this machine, with the remedy.

    Args:
        metric: "METEOR" or "SPICE".

    Returns:
        The reason, or "" if the metric can be computed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return f"needs its official program: {install_hint('java')}"
    if shutil.which("java") is None:
        return "needs Java to run its official program: no `java` on the path"
    folder = Path(spec.submodule_search_locations[0])
    if metric == "SPICE" and not (folder / "spice/lib/stanford-corenlp-3.6.0-models.jar").is_file():
        return (
            "needs the models of its parser: `python -c 'from pycocoevalcap.spice.get_stanford_models import "
            "get_stanford_models as get; get()'` downloads them (about 400 MB)"
        )
    return ""
